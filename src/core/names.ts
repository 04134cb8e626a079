/** A container's or project's name: what a host name, a path component and a registry component can all be. */
export const namePattern = /^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$/;
export const nameRule = "1 to 63 lower-case letters, digits and `-`, not at the ends";
