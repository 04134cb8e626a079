import postgres from "postgres";
import { type DatabaseAddress, type Login, openClient } from "./client.ts";
import { drizzle } from "./drizzle.ts";
import * as schema from "./schema.ts";

/** Connections of one process; `sql` is the driver below `db`, for LISTEN and migrations. */
export interface Connection {
  db: Db;
  sql: postgres.Sql;
  close(): Promise<void>;
}

/** Opens a pool of connections (8 unless told), as one of those that `openClient` knows. */
export function connect(
  address: DatabaseAddress,
  as: "owner" | "api" | Login,
  more: { max?: number } = {},
): Connection {
  const client = openClient(address, as, more.max ?? 8);
  return { db: open(client), sql: client, close: () => client.end({ timeout: 5 }) };
}

function open(client: postgres.Sql) {
  return drizzle(prepared(client), { schema });
}

/**
 * drizzle sends its queries by the driver's `unsafe`, which does not prepare unless told: two round trips each, the first
 * for the parameters' types. Prepared, a query costs the second alone from its second use on (1.4 ms → 0.3 ms).
 */
function prepared<Client extends postgres.Sql | postgres.TransactionSql>(client: Client): Client {
  return new Proxy(client, {
    get(target, key) {
      if (key === "unsafe") {
        return (query: string, parameters?: postgres.ParameterOrJSON<never>[], options?: postgres.UnsafeQueryOptions) =>
          target.unsafe(query, parameters, { ...options, prepare: true });
      }
      if (key === "begin" && "begin" in target) {
        return (work: (tx: postgres.TransactionSql) => Promise<unknown>) => target.begin((tx) => work(prepared(tx)));
      }
      return Reflect.get(target, key) as unknown;
    },
  });
}
export type Db = ReturnType<typeof open>;
export type Transaction = Parameters<Parameters<Db["transaction"]>[0]>[0];
