import postgres from "postgres";
import { newId } from "../core/ids.ts";
import { hostKey, tokenHash } from "../core/keys.ts";
import { apiLogin, makeApiLogin } from "./api-login.ts";
import { type DatabaseAddress, openClient } from "./client.ts";
import { admitHost, hostsWithoutLogin } from "./host-login.ts";
import { migrate, migrationFiles } from "./migrate.ts";

/** Lets the API log in as itself to the database that the URL names (db/api-login.ts). */
export async function admitApi(url: string, secretKey: string): Promise<void> {
  const sql = openClient({ url }, "owner", 1);
  try {
    await makeApiLogin(sql, apiLogin(url, secretKey));
  } finally {
    await sql.end({ timeout: 5 });
  }
}

/** PostgreSQL's error code for it: an empty database. */
const undefinedTable = "42P01";

/** The name of the operator's token that the settings give. */
const tokenName = "settings";

/**
 * Makes a database ready to be used: its schema up to date, and, when the operator's token is given, that token known
 * (in place of the one that the settings gave before) and the project `default` there.
 * @param secretKey from it follow the passwords of hosts that were there before hosts had logins; null: there are none
 * @returns the number of migrations that ran
 */
export async function prepareDatabase(
  address: DatabaseAddress,
  operatorToken: string | null,
  secretKey: string | null = null,
): Promise<{ migrations: number }> {
  const sql = openClient(address, "owner", 1);
  try {
    if (await isPrepared(sql, operatorToken)) return { migrations: 0 };
    const migrations = await migrate(sql, { apiLogin: "socketDir" in address });
    if (operatorToken !== null) {
      const hash = tokenHash(operatorToken);
      await sql.begin(async (tx) => {
        await tx`
          insert into projects (id, name) values (${newId("project")}, 'default') on conflict (name) do nothing`;
        await tx`
          update tokens set revoked_at = now()
          where role = 'operator' and name = ${tokenName} and hash <> ${hash} and revoked_at is null`;
        await tx`
          insert into tokens (id, role, name, hash) values (${newId("token")}, 'operator', ${tokenName}, ${hash})
          on conflict (hash) do update set revoked_at = null`;
      });
    }
    if (secretKey !== null && migrations > 0) {
      for (const id of await hostsWithoutLogin(sql)) await admitHost(sql, { id, key: hostKey(secretKey, id) });
    }
    return { migrations };
  } finally {
    await sql.end({ timeout: 5 });
  }
}

/** Whether there is nothing to do, as with every start but the first: one query tells, in place of two transactions. */
async function isPrepared(sql: postgres.Sql, operatorToken: string | null): Promise<boolean> {
  try {
    const files = await migrationFiles();
    const hash = operatorToken === null ? null : tokenHash(operatorToken);
    const [row] = await sql<{ prepared: boolean }[]>`
      select not exists (select unnest(${files}::text[]) except select name from berth_migrations)
        and (${hash}::bytea is null
          or exists (select from projects where name = 'default')
          and exists (select from tokens where hash = ${hash} and role = 'operator' and revoked_at is null)
          and not exists (select from tokens
            where role = 'operator' and name = ${tokenName} and hash <> ${hash} and revoked_at is null)) as prepared`;
    return row?.prepared === true;
  } catch (error) {
    if (error instanceof postgres.PostgresError && error.code === undefinedTable) return false;
    throw error;
  }
}
