import type postgres from "postgres";
import type { ContainerSpec, ContainerStatus, Wanted } from "../core/container.ts";
import type { Health } from "../core/health.ts";
import type { Image } from "../core/image.ts";
import type { PortMapping } from "../core/port.ts";
import { topics } from "./wakeups.ts";

/** A container as its host's worker reads it: the row, its image (null: not resolved yet) and its ports. */
export interface InboxContainer {
  id: string;
  projectId: string;
  name: string;
  spec: ContainerSpec;
  imageReference: string;
  cpus: number;
  memory: number;
  pids: number;
  disk: number;
  wanted: Wanted;
  wantedRev: number;
  wantedRun: number;
  wantedPaused: boolean;
  signals: number[];
  seenRev: number;
  run: number;
  status: ContainerStatus;
  slot: number | null;
  restartCount: number;
  restartInMs: number | null;
  /** Milliseconds since the last run began; 0 before the first. */
  ranMs: number;
  health: Health | null;
  image: Image | null;
  ports: (PortMapping & { status: "pending" | "active" | "removing" })[];
}

/** What the worker writes of a container; absent fields stay. */
export interface SeenPatch {
  seenRev?: number;
  run?: number;
  status?: ContainerStatus;
  slot?: number;
  ipAddress?: string;
  imageDigest?: string;
  pid?: number | null;
  exitCode?: number | null;
  reason?: string | null;
  detail?: string | null;
  oomKilled?: boolean;
  restartCount?: number;
  /** The limit that it really has, bytes. */
  memory?: number;
  health?: Health | null;
  /** Milliseconds from now until the automatic restart. */
  restartInMs?: number | null;
  started?: true;
  finished?: true;
  /** How many of the oldest signals were delivered. */
  signalsDelivered?: number;
  /** Want it removed (autoRemove). */
  remove?: true;
}

/**
 * The queries between POST and a container's first instruction. They are the driver's tagged templates, not drizzle's:
 * they stay prepared, so that each costs one round trip (0.2 ms) and not two.
 */
type Sql = postgres.Sql;

const columns = (sql: Sql) => sql`c.id, c.project_id "projectId", c.name, c.spec, c.image_reference "imageReference",
  c.cpus, c.memory::float8 memory, c.pids, c.disk::float8 disk, c.wanted, c.wanted_rev::int "wantedRev",
  c.wanted_run::int "wantedRun", c.wanted_paused "wantedPaused", c.signals, c.seen_rev::int "seenRev", c.run::int run, c.status, c.slot,
  c.restart_count "restartCount", (extract(epoch from c.restart_at - now()) * 1000)::float8 "restartInMs",
  coalesce(extract(epoch from now() - c.started_at) * 1000, 0)::float8 "ranMs",
  c.health, (select jsonb_build_object('digest', i.digest, 'mediaType', i.media_type, 'config', i.config, 'layers', i.layers)
     from images i where i.project_id = c.project_id and i.digest = c.image_digest) image,
  (select coalesce(jsonb_agg(jsonb_build_object('id', p.id, 'containerPort', p.container_port, 'hostPort', p.host_port,
     'protocol', p.protocol, 'hostAddress', case when masklen(p.host_address) = 0 then null else host(p.host_address) end,
     'status', p.status) order by p.id), '[]') from ports p where p.container_id = c.id) ports`;

/** One container of this host; null: its row is gone (or is another host's). */
export async function readContainer(sql: Sql, hostId: string, id: string): Promise<InboxContainer | null> {
  const rows = await sql<InboxContainer[]>`
    select ${columns(sql)} from containers c where c.id = ${id} and c.host_id = ${hostId}`;
  return rows[0] ?? null;
}

/**
 * The containers of this host whose wish was changed since the worker last settled them. All of them: those that take long,
 * such as for their image, must not hide the ones behind them.
 */
export async function readInbox(sql: Sql, hostId: string): Promise<InboxContainer[]> {
  return sql<InboxContainer[]>`
    select ${columns(sql)} from containers c where c.host_id = ${hostId} and c.wanted_rev <> c.seen_rev
    order by c.created_at`;
}

/** Every container of this host, for adoption and for the comparison with the kernel. */
export async function listHostContainers(sql: Sql, hostId: string): Promise<{ id: string; slot: number | null }[]> {
  return sql<{ id: string; slot: number | null }[]>`
    select id, slot from containers where host_id = ${hostId} order by id`;
}

/** Host-bound writes hold only while this is the host's newest session. */
export interface Fence {
  hostId: string;
  session: number;
}

const held = (sql: Sql, fence: Fence) =>
  sql`exists (select from hosts h where h.id = ${fence.hostId} and h.session = ${fence.session})`;

/** Columns that a patch names, each with its field and type; what the patch leaves out stays. */
const patched = (
  [
    ["seen_rev", "seenRev", "bigint"],
    ["run", "run", "bigint"],
    ["status", "status", "text"],
    ["slot", "slot", "int"],
    ["ip_address", "ipAddress", "text"],
    ["image_digest", "imageDigest", "text"],
    ["pid", "pid", "int"],
    ["exit_code", "exitCode", "int"],
    ["reason", "reason", "text"],
    ["detail", "detail", "text"],
    ["oom_killed", "oomKilled", "boolean"],
    ["restart_count", "restartCount", "int"],
    ["health", "health", "text"],
    ["memory", "memory", "bigint"],
  ] as const
)
  .map(
    ([column, field, type]) => `${column} = case when p ? '${field}' then (p->>'${field}')::${type} else ${column} end`,
  )
  .join(", ");

/**
 * Writes what was seen of a container, with an event when `event` names one, and wakes those who wait, in one statement,
 * whose text never changes, so that it is prepared once. False: the row is gone, or a newer session of this host has
 * taken over.
 * @param durable false: everybody sees it at once, but a crash of the database within the next second may undo it
 * (PostgreSQL, "Asynchronous Commit"), unless something durable was written after it
 */
export async function writeSeen(
  sql: Sql,
  fence: Fence,
  container: { id: string; projectId: string },
  patch: SeenPatch,
  event?: { type: string; data?: Record<string, unknown> },
  durable = true,
): Promise<boolean> {
  const rows = await sql`
    with seen as (update containers set ${sql.unsafe(patched)},
        restart_at = case when p ? 'restartInMs' then now() + make_interval(secs => (p->>'restartInMs')::float8 / 1000) else restart_at end,
        started_at = case when p ? 'started' then now() else started_at end,
        finished_at = case when p ? 'started' then null when p ? 'finished' then now() else finished_at end,
        wanted_paused = wanted_paused and not p ? 'finished',
        wanted = case when p ? 'remove' then 'removed' else wanted end,
        wanted_rev = case when p ? 'remove' then wanted_rev + 1 else wanted_rev end,
        signals = case when p ? 'signalsDelivered' then signals[(p->>'signalsDelivered')::int + 1:] else signals end
      from (select ${JSON.stringify(patch)}::text::jsonb p) patch
      where id = ${container.id} and host_id = ${fence.hostId} and ${held(sql, fence)} returning id),
    told as (insert into events (project_id, type, subject_id, data)
      select ${container.projectId}, ${event?.type ?? ""}, id, ${JSON.stringify(event?.data ?? {})}::text::jsonb from seen
      where ${event !== undefined}::boolean)
    select id seen, pg_notify('berth', id),
      case when ${!durable}::boolean then set_config('synchronous_commit', 'off', true) end,
      case when ${event !== undefined}::boolean then pg_notify('berth', ${topics.events(container.projectId)}) end from seen`;
  return rows.length === 1;
}

/**
 * Records what a running container's checks have found, with its event. Only while that run goes on: the end of a run
 * is told by writeSeen alone.
 */
export async function writeHealth(
  sql: Sql,
  fence: Fence,
  container: { id: string; run: number },
  health: Health,
  why: string | null,
): Promise<void> {
  const data = JSON.stringify(why === null ? {} : { detail: why });
  await sql`
    with seen as (update containers set health = ${health}, detail = ${why},
        reason = case when ${why !== null}::boolean then 'unhealthy' end
      where id = ${container.id} and run = ${container.run} and status = 'running' and ${held(sql, fence)}
      returning id, project_id),
    told as (insert into events (project_id, type, subject_id, data)
      select project_id, ${`container.${health}`}, id, ${data}::text::jsonb from seen)
    select pg_notify('berth', id), pg_notify('berth', 'events:' || project_id) from seen`;
}

/** Deletes the row of a container of which the host has nothing left; its ports go with it. */
export async function eraseContainer(
  sql: Sql,
  fence: Fence,
  container: { id: string; projectId: string },
): Promise<boolean> {
  const rows = await sql`
    with gone as (delete from containers where id = ${container.id} and host_id = ${fence.hostId} and ${held(sql, fence)}
      returning id),
    told as (insert into events (project_id, type, subject_id)
      select ${container.projectId}, 'container.removed', id from gone)
    select pg_notify('berth', id), pg_notify('berth', ${topics.events(container.projectId)}) from gone`;
  return rows.length === 1;
}

/**
 * Records which ports are applied (`active`) and which no longer (`idle`), and deletes those taken away or refused.
 * @returns the containers that have some of those ports by now: nothing was written of these, and as the caller went by a
 * row from before that, what the host has of them may be wrong
 */
export async function writePorts(
  sql: Sql,
  fence: Fence,
  container: { id: string; projectId: string },
  change: {
    active?: string[];
    idle?: string[];
    gone?: string[];
    refused?: { id: string; reason: string; detail: string }[];
  },
): Promise<string[]> {
  const { active = [], idle = [], gone = [], refused = [] } = change;
  const off = [...gone, ...refused.map((port) => port.id)];
  const own = sql`container_id = ${container.id} and ${held(sql, fence)}`;
  const rows = await sql<{ owner: string | null }[]>`
    with on_host as (update ports set status = 'active'
        where id = any(${active}::text[]) and status = 'pending' and ${own} returning id),
    idle as (update ports set status = 'pending' where id = any(${idle}::text[]) and status = 'active' and ${own}),
    off_host as (delete from ports where id = any(${off}::text[]) and ${own} returning id),
    told as (insert into events (project_id, type, subject_id, data)
      select ${container.projectId}, 'port.refused', id, r from off_host
      join jsonb_array_elements(${JSON.stringify(refused)}::text::jsonb) r on r->>'id' = id)
    select null owner, pg_notify('berth', id)::text
      from (select id from on_host union all select id from off_host union all select ${container.id}) t
    union all select container_id, null from ports
      where id = any(${[...active, ...idle]}::text[]) and container_id <> ${container.id}`;
  return [...new Set(rows.flatMap(({ owner }) => owner ?? []))];
}
