import { newId } from "../core/ids.ts";
import type { Db } from "./connect.ts";
import { and, eq, sql } from "./drizzle.ts";
import { hosts } from "./schema.ts";

/** A worker's host as it registers itself: names, where its agent listens, what it has (cores, bytes, ports). */
export interface HostRegistration {
  name: string;
  address: string;
  agentUrl: string;
  bootId: string;
  cpus: number;
  memory: number;
  disk: number;
  portFirst: number;
  portLast: number;
  reservedPorts: number[];
}

/**
 * Registers the host and opens its next session: every older session's writes change no row from now on.
 * `rebooted`: the machine was started anew since the last session.
 */
export async function openHostSession(
  db: Db,
  host: HostRegistration,
): Promise<{ id: string; session: number; rebooted: boolean }> {
  const known = await db.select({ bootId: hosts.bootId }).from(hosts).where(eq(hosts.name, host.name));
  const rows = await db
    .insert(hosts)
    .values({ id: newId("host"), ...host, session: 1 })
    .onConflictDoUpdate({
      target: hosts.name,
      set: {
        ...host,
        session: sql`${hosts.session} + 1`,
        state: sql`case when ${hosts.state} = 'gone' then 'active' else ${hosts.state} end`,
        heartbeatAt: sql`now()`,
      },
    })
    .returning({ id: hosts.id, session: hosts.session });
  const row = rows[0];
  if (row === undefined) throw new Error("the host was not registered");
  const before = known[0]?.bootId;
  return { ...row, rebooted: before !== undefined && before !== host.bootId };
}

/** Says that the host is alive. False: a newer session has taken over, this worker must stop. */
export async function heartbeat(db: Db, host: { id: string; session: number }): Promise<boolean> {
  const rows = await db
    .update(hosts)
    .set({ heartbeatAt: sql`now()` })
    .where(and(eq(hosts.id, host.id), eq(hosts.session, host.session)))
    .returning({ id: hosts.id });
  return rows.length === 1;
}
