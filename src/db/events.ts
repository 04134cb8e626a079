import type { Scope } from "./scope.ts";
import { type Fragment, read, type Sql, type Tx, time } from "./scope.ts";
import { topics } from "./wakeups.ts";

/** Where a reader is in a project's events: behind the row (xid, id). Text form `<xid>-<id>`. */
export interface EventPosition {
  xid: string;
  id: string;
}

export interface EventRow {
  position: EventPosition;
  type: string;
  subjectId: string;
  data: Record<string, unknown>;
  at: string;
}

/** Writes an event in the transaction that it tells of, and wakes its readers. */
export async function appendEvent(
  tx: Tx,
  event: { projectId: string; type: string; subjectId: string; data?: Record<string, unknown> },
): Promise<void> {
  await tx`
    with written as (
      insert into events (project_id, type, subject_id, data)
      values (${event.projectId}, ${event.type}, ${event.subjectId}, ${JSON.stringify(event.data ?? {})}::text::jsonb))
    select pg_notify('berth', ${topics.events(event.projectId)})`;
}

export interface EventFilter {
  types?: readonly string[] | undefined;
  subjectId?: string | undefined;
}

/**
 * The events behind `after`, in (xid, id) order. Only those below every transaction that is still open: one of these
 * could yet commit an event that belongs before them. `upTo` is where to go on, also when the filter let nothing pass;
 * `pending` says that newer events wait for an open transaction.
 */
export async function eventsAfter(
  sql: Sql,
  scope: Scope,
  after: EventPosition,
  filter: EventFilter,
  limit: number,
): Promise<{ events: EventRow[]; upTo: EventPosition; pending: boolean }> {
  const rows = await read<{
    horizon: string;
    xid: string | null;
    id: string;
    type: string;
    subject_id: string;
    data: Record<string, unknown>;
    at: string;
    settled: boolean;
  }>(
    sql,
    scope,
    sql`select h.horizon::text, e.xid::text, e.id::text, e.type, e.subject_id, e.data, e.at, e.xid < h.horizon as settled
      from (select pg_snapshot_xmin(pg_current_snapshot()) as horizon) h left join lateral (
        select * from events where project_id = ${scope.projectId}
          and (events.xid, events.id) > (${after.xid}::xid8, ${after.id}::bigint) ${wanted(sql, filter)}
        order by events.xid, events.id limit ${limit}) e on true order by e.xid, e.id`,
  );
  const events = rows.flatMap((row): EventRow[] =>
    row.xid === null || !row.settled
      ? []
      : [
          {
            position: { xid: row.xid, id: row.id },
            type: row.type,
            subjectId: row.subject_id,
            data: row.data,
            at: time(row.at),
          },
        ],
  );
  const full = rows.length === limit && rows[0]?.xid !== null;
  const last = events.at(-1)?.position ?? after;
  const horizon = { xid: rows[0]?.horizon ?? after.xid, id: "0" };
  const pending = rows.some((row) => row.xid !== null && !row.settled);
  return { events, upTo: full || BigInt(horizon.xid) <= BigInt(last.xid) ? last : horizon, pending };
}

function wanted(sql: Sql, filter: EventFilter): Fragment {
  const types = filter.types === undefined ? sql`` : sql`and type = any(${filter.types as string[]}::text[])`;
  const subject = filter.subjectId === undefined ? sql`` : sql`and subject_id = ${filter.subjectId}`;
  return sql`${types} ${subject}`;
}

/** The position from which a reader sees all that commits from now on. */
export async function currentPosition(sql: Sql): Promise<EventPosition> {
  const [row] = await sql<{ xid: string }[]>`select pg_snapshot_xmin(pg_current_snapshot())::text as xid`;
  return { xid: row?.xid ?? "0", id: "0" };
}

/** The last event of a type about a subject, which may itself be gone; null when there is none. */
export async function lastEvent(sql: Sql, scope: Scope, type: string, subjectId: string): Promise<EventRow | null> {
  const rows = await read<{ xid: string; id: string; data: Record<string, unknown>; at: string }>(
    sql,
    scope,
    sql`select xid::text, id::text, data, at from events where project_id = ${scope.projectId}
      and type = ${type} and subject_id = ${subjectId} order by events.id desc limit 1`,
  );
  const row = rows[0];
  return row === undefined
    ? null
    : { position: { xid: row.xid, id: row.id }, type, subjectId, data: row.data, at: time(row.at) };
}
