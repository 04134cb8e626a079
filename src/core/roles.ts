/** Who may do what. `operator` is the provider's own token; the others belong to one project. */
export const roles = ["viewer", "deployer", "admin", "operator"] as const;
export type Role = (typeof roles)[number];

/** Whether `role` may do what at least `needed` may: viewer < deployer < admin < operator. */
export function allows(role: Role, needed: Role): boolean {
  return roles.indexOf(role) >= roles.indexOf(needed);
}
