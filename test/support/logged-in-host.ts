import type postgres from "postgres";
import { newId } from "../../src/core/ids.ts";
import type { Connection } from "../../src/db/connect.ts";
import type { TestDatabase } from "./postgres.ts";

/** A host that has logged in to a database. */
export interface LoggedInHost {
  id: string;
  connection: Connection;
}

/** Makes a host that has begun a session, and logs in as it. */
export async function logInHost(db: TestDatabase, name: string): Promise<LoggedInHost> {
  const id = newId("host");
  await db.owner`
    insert into hosts (id, name, address, agent_url, cpus, memory, disk, port_first, port_last, session)
    values (${id}, ${name}, '127.0.0.1', ${`unix:/${name}`}, 4, 1000, 1000, 8000, 8010, 1)`;
  return { id, connection: await db.asHost(id) };
}

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
