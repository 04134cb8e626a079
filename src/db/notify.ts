import type { Db, Transaction } from "./connect.ts";
import { sql } from "./drizzle.ts";
import { channel } from "./wakeups.ts";

/** Sends the topics when the transaction commits (equal ones once). */
export async function notify(tx: Db | Transaction, ...names: string[]): Promise<void> {
  await tx.execute(sql`select pg_notify(${channel}, t) from unnest(${sql.param(names)}::text[]) t`);
}
