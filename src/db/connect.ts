import postgres from "postgres";
import { type DatabaseAddress, openClient } from "./client.ts";
import { drizzle, sql } from "./drizzle.ts";
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
  return { db: drizzle(client, { schema }), sql: client, close: () => client.end({ timeout: 5 }) };
}

function open(client: postgres.Sql) {
  return drizzle(client, { schema });
}
export type Db = ReturnType<typeof open>;
export type Transaction = Parameters<Parameters<Db["transaction"]>[0]>[0];

/** Whose rows a transaction of the API may touch. */
export interface Scope {
  projectId: string;
  /** Also see and make projects. */
  operator?: boolean;
}

/** Runs `work` in one transaction that sees only the scope's rows. */
export async function withProject<T>(db: Db, scope: Scope, work: (tx: Transaction) => Promise<T>): Promise<T> {
  return db.transaction(async (tx) => {
    await tx.execute(
      sql`select set_config('berth.project_id', ${scope.projectId}, true), set_config('berth.operator', ${scope.operator === true ? "on" : ""}, true)`,
    );
    return work(tx);
  });
}

/** The SQLSTATE and constraint of a failed query, wherever drizzle put them; null for other errors. */
export function sqlState(error: unknown): { code: string; constraint: string } | null {
  for (let e: unknown = error; e instanceof Error; e = e.cause) {
    if (e instanceof postgres.PostgresError) return { code: e.code, constraint: e.constraint_name ?? "" };
  }
  return null;
}
