import { newId } from "../core/ids.ts";
import { tokenHash } from "../core/keys.ts";
import { apiLogin, makeLogin } from "./api-login.ts";
import { type DatabaseAddress, openClient } from "./client.ts";
import { migrate } from "./migrate.ts";
import { workerRole } from "./worker-role.ts";

/** Lets the API log in as itself to the database that the URL names (db/api-login.ts). */
export async function admitApi(url: string, secretKey: string): Promise<void> {
  const sql = openClient({ url }, "owner", 1);
  try {
    await makeLogin(sql, apiLogin(url, secretKey), "berth_api");
  } finally {
    await sql.end({ timeout: 5 });
  }
}

/** The name of the operator's token that the settings give. */
const tokenName = "settings";

/**
 * Makes a database ready to be used: its schema up to date, and, when the operator's token is given, that token known
 * (in place of the one that the settings gave before) and the project `default` there.
 * `workerPassword`: lets workers of other machines log in, on an embedded database.
 * @returns the number of migrations that ran
 */
export async function prepareDatabase(
  address: DatabaseAddress,
  operatorToken: string | null,
  workerPassword: string | null = null,
): Promise<{ migrations: number }> {
  const sql = openClient(address, "owner", 1);
  try {
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
    if (workerPassword !== null) await makeLogin(sql, { name: workerRole, password: workerPassword }, "berth_owner");
    return { migrations };
  } finally {
    await sql.end({ timeout: 5 });
  }
}
