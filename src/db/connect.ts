import postgres from "postgres";
import { type DatabaseAddress, openClient } from "./client.ts";
import { drizzle } from "./drizzle.ts";
import * as schema from "./schema.ts";

/** Connections of one process; `sql` is the driver below `db`, for LISTEN and migrations. */
export interface Connection {
  db: Db;
  sql: postgres.Sql;
  close(): Promise<void>;
}

/** Opens a pool of connections (8 unless told), as one of the two roles of `openClient`. */
export function connect(address: DatabaseAddress, as: "owner" | "api", more: { max?: number } = {}): Connection {
  const client = openClient(address, as, more.max ?? 8);
  return { db: open(client), sql: client, close: () => client.end({ timeout: 5 }) };
}

function open(client: postgres.Sql) {
  return drizzle(client, { schema });
}
export type Db = ReturnType<typeof open>;
export type Transaction = Parameters<Parameters<Db["transaction"]>[0]>[0];
