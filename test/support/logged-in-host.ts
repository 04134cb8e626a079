import type postgres from "postgres";
import { newId } from "../../src/core/ids.ts";
import { type Connection, connect } from "../../src/db/connect.ts";
import { admitHost, hostLogin } from "../../src/db/host-login.ts";
import type { TestDatabase } from "./postgres.ts";

/** A host that has logged in to a database. */
export interface LoggedInHost {
  id: string;
  key: string;
  connection: Connection;
}

/** Makes a host that has begun a session, and logs in as it. Its login is of the whole server: forget it at the end. */
export async function logInHost(db: TestDatabase, name: string): Promise<LoggedInHost> {
  const host = { id: newId("host"), key: `key of ${name}` };
  await db.owner`
    insert into hosts (id, name, address, agent_url, cpus, memory, disk, port_first, port_last, session)
    values (${host.id}, ${name}, '127.0.0.1', ${`unix:/${name}`}, 4, 1000, 1000, 8000, 8010, 1)`;
  if (!(await admitHost(db.owner, host))) throw new Error("the host is unknown");
  return { ...host, connection: connect({ url: urlOf(db) }, hostLogin(host), { max: 2 }) };
}

/** Where a database of the tests is; who logs in is for the driver's options to say. */
export const urlOf = (db: TestDatabase) => `postgres://${encodeURIComponent(db.socketDir)}/${db.name}`;

/** PostgreSQL's error code for what somebody may not do. */
export const refused = "42501";

/** What a statement comes to in a transaction that is undone: the rows that it gave or changed, or its error's code. */
export async function attempt(sql: postgres.Sql, statement: string): Promise<number | string> {
  const undo = new Error("undone");
  let rows = 0;
  try {
    await sql.begin(async (tx) => {
      rows = (await tx.unsafe(statement)).count;
      throw undo;
    });
  } catch (error) {
    if (error !== undo) return (error as { code: string }).code;
  }
  return rows;
}
