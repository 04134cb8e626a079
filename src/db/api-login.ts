import { createHash, createHmac, pbkdf2Sync, randomBytes } from "node:crypto";
import type postgres from "postgres";
import type { Login } from "./client.ts";

/**
 * On a database that BERTH_DATABASE_URL names the API has a login of its own, which is a member of `berth_api` and nothing
 * else: code that took over the API process could leave that role and would have gained nothing. Name and password follow
 * from the URL and the secret key, so that every start knows them. Several Berths may share a server.
 */
export function apiLogin(url: string, secretKey: string): Login {
  const database = new URL(url).pathname.slice(1);
  return {
    name: `berth_api_${createHash("sha256").update(database).digest("hex").slice(0, 12)}`,
    password: createHmac("sha256", secretKey).update("berth api's database login v1").digest("base64url"),
  };
}

/** The URL with the API's login in place of its own. */
export function apiUrl(url: string, secretKey: string): string {
  const { name, password } = apiLogin(url, secretKey);
  const own = new URL(url);
  own.username = name;
  own.password = password;
  if (own.username !== name) throw new Error("BERTH_DATABASE_URL: must name a host");
  return own.href;
}

/**
 * Makes the API's login, or gives it its password again. The database is told what it checks the password by, not the
 * password: statements can end up in its log.
 * @throws Error when the URL's user may not make roles
 */
export async function makeApiLogin(sql: postgres.Sql, { name, password }: Login): Promise<void> {
  try {
    const known = await sql`select from pg_roles where rolname = ${name}`;
    if (known.length === 0) await sql.unsafe(`create role ${name} login in role berth_api`);
    await sql.unsafe(`alter role ${name} password '${scramVerifier(password)}'`);
  } catch (cause) {
    const denied = cause instanceof Error && "code" in cause && cause.code === "42501";
    if (!denied) throw cause;
    throw new Error("BERTH_DATABASE_URL: its user must be allowed to make roles (CREATEROLE)", { cause });
  }
}

/** What Postgres keeps of a password (RFC 5802, RFC 7677): salt and keys, from which it can't be had again. */
export function scramVerifier(password: string): string {
  const [rounds, salt] = [4096, randomBytes(16)];
  const salted = pbkdf2Sync(password, salt, rounds, 32, "sha256");
  const key = (name: string) => createHmac("sha256", salted).update(name).digest();
  const stored = createHash("sha256").update(key("Client Key")).digest("base64");
  return `SCRAM-SHA-256$${String(rounds)}:${salt.toString("base64")}$${stored}:${key("Server Key").toString("base64")}`;
}
