/** What every container's process may do within its own user namespace (capabilities(7), names without `CAP_`). */
export const defaultCapabilities = [
  "CHOWN",
  "DAC_OVERRIDE",
  "FOWNER",
  "FSETID",
  "SETUID",
  "SETGID",
  "KILL",
  "NET_BIND_SERVICE",
] as const;

/** What a container may ask for beyond the default; builds have both. NET_RAW, MKNOD and SYS_ADMIN are never given. */
export const addableCapabilities = ["SETFCAP", "SYS_CHROOT"] as const;

/**
 * The capabilities of a process: the default and what was added, without what was dropped (`ALL` drops the default).
 * What may be added is checked where it is asked for; here anything else is left out.
 */
export function effectiveCapabilities(change: { add: readonly string[]; drop: readonly string[] }): string[] {
  const dropped = new Set(change.drop);
  const kept = dropped.has("ALL") ? [] : defaultCapabilities.filter((name) => !dropped.has(name));
  const allowed: readonly string[] = [...defaultCapabilities, ...addableCapabilities];
  return [...new Set([...kept, ...change.add.filter((name) => allowed.includes(name))])];
}
