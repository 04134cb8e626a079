import { type HostRegistration, nameTaken } from "../core/host.ts";
import { newId } from "../core/ids.ts";
import type { Db, Transaction } from "./connect.ts";
import { and, eq, sql } from "./drizzle.ts";
import { hosts } from "./schema.ts";

/**
 * Registers the host of a worker that holds the secret key; its id. A worker of the same data directory, told by its
 * agent's socket, is the same host: it may have ended before it could note its id.
 * @throws BerthError `name_taken`
 */
export async function registerHost(db: Db, host: HostRegistration): Promise<string> {
  const rows = await db
    .insert(hosts)
    .values({ id: newId("host"), ...host })
    .onConflictDoUpdate({
      target: hosts.name,
      set: { agentUrl: host.agentUrl },
      setWhere: sql`${hosts.agentUrl} = ${host.agentUrl} and ${hosts.joinTokenId} is null`,
    })
    .returning({ id: hosts.id });
  if (rows[0] === undefined) throw nameTaken(host.name);
  return rows[0].id;
}

/**
 * Opens the host's next session: every older session's writes change no row from now on. Null: the host is unknown, as it
 * was forgotten. `rebooted`: the machine was started anew since the last session.
 * @throws BerthError `name_taken` when it was renamed to what another host is called
 */
export async function openHostSession(
  db: Db,
  id: string,
  host: HostRegistration,
): Promise<{ id: string; session: number; rebooted: boolean } | null> {
  const [known] = await db.select({ bootId: hosts.bootId, name: hosts.name }).from(hosts).where(eq(hosts.id, id));
  if (known === undefined) return null;
  if (known.name !== host.name) {
    const others = await db.select({ id: hosts.id }).from(hosts).where(eq(hosts.name, host.name));
    if (others.length > 0) throw nameTaken(host.name);
  }
  const rows = await db
    .update(hosts)
    .set({ ...host, session: sql`${hosts.session} + 1`, heartbeatAt: sql`now()` })
    .where(eq(hosts.id, id))
    .returning({ id: hosts.id, session: hosts.session });
  const row = rows[0];
  return row === undefined ? null : { ...row, rebooted: known.bootId !== host.bootId };
}

/** Whether this is still the host's session; if so, no newer one begins before the transaction has ended. */
export async function holdsHost(tx: Transaction, host: { id: string; session: number }): Promise<boolean> {
  const rows = await tx.execute(sql`select 1 from hosts where id = ${host.id} and session = ${host.session} for share`);
  return rows.length === 1;
}

/** Says that the host is alive, and how many bytes of its disk are free. False: a newer session has taken over or the host was forgotten; this worker must stop. */
export async function heartbeat(db: Db, host: { id: string; session: number }, diskFree: number): Promise<boolean> {
  const rows = await db
    .update(hosts)
    .set({ heartbeatAt: sql`now()`, diskFree })
    .where(and(eq(hosts.id, host.id), eq(hosts.session, host.session)))
    .returning({ id: hosts.id });
  return rows.length === 1;
}
