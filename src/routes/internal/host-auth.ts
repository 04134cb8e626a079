import { hostKey, parseCredential, sameSecret } from "../../core/keys.ts";
import { agentUrl } from "../../db/hosts.ts";
import type { Sql } from "../../db/scope.ts";

/** Whose credential it is: the id of a host that has not been forgotten; null: nobody's. */
export async function authenticateHost(sql: Sql, secretKey: string, bearer: string): Promise<string | null> {
  const given = parseCredential(bearer);
  if (given === null || !sameSecret(given.key, hostKey(secretKey, given.id))) return null;
  return (await agentUrl(sql, given.id)) === null ? null : given.id;
}
