import postgres from "postgres";
import { databasePassword } from "../core/keys.ts";
import { scramVerifier } from "./api-login.ts";
import type { Login } from "./client.ts";
import type { Sql } from "./scope.ts";

/**
 * Every host logs in to the database as itself: a member of `berth_worker`, whose rights are in migrations/0012_*. Which
 * host it is, the database tells by the login. The password follows from the host's key.
 */
export function hostLogin(host: { id: string; key: string }): Login {
  return { name: `berth_${host.id}`, password: databasePassword(host.key) };
}

/** Lets a host log in with its key from now on. False: there is no such host. Asked as the API or the owner. */
export async function admitHost(sql: Sql, host: { id: string; key: string }): Promise<boolean> {
  const verifier = scramVerifier(hostLogin(host).password);
  const [row] = await sql<{ admitted: boolean }[]>`select berth_admit_host(${host.id}, ${verifier}) as admitted`;
  return row?.admitted === true;
}

/** Hosts that can't log in yet: they were here before hosts had logins. Asked as the owner. */
export async function hostsWithoutLogin(sql: Sql): Promise<string[]> {
  const rows = await sql<{ id: string }[]>`
    select id from hosts where not exists (select from pg_roles where rolname = 'berth_' || hosts.id)`;
  return rows.map(({ id }) => id);
}

/** PostgreSQL's error codes for a login that is unknown or refused, or whose password is another. */
const refusals = ["28000", "28P01"];

/** Whether the database lets in who has opened this pool. @throws what the driver throws when it does not answer */
export async function isAdmitted(sql: Sql): Promise<boolean> {
  try {
    await sql`select`;
    return true;
  } catch (error) {
    if (isRefusal(error)) return false;
    throw error;
  }
}

/** Whether a query failed because its connection was not let in. */
export function isRefusal(error: unknown): boolean {
  // drizzle wraps what the driver threw.
  if (error instanceof Error && "query" in error && error.cause !== undefined) return isRefusal(error.cause);
  return error instanceof postgres.PostgresError && refusals.includes(error.code);
}
