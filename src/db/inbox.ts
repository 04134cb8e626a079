import type { ContainerSpec, ContainerStatus, Wanted } from "../core/container.ts";
import type { Image } from "../core/image.ts";
import type { PortMapping } from "../core/port.ts";
import type { Db } from "./connect.ts";
import { sql } from "./drizzle.ts";
import { topics } from "./notify.ts";

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
  signals: number[];
  seenRev: number;
  run: number;
  status: ContainerStatus;
  slot: number | null;
  restartCount: number;
  restartInMs: number | null;
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
  /** Milliseconds from now until the automatic restart. */
  restartInMs?: number | null;
  started?: true;
  finished?: true;
  /** How many of the oldest signals were delivered. */
  signalsDelivered?: number;
  /** Want it removed (autoRemove). */
  remove?: true;
}

const columns = sql`c.id, c.project_id "projectId", c.name, c.spec, c.image_reference "imageReference", c.cpus,
  c.memory::float8 memory, c.pids, c.disk::float8 disk, c.wanted, c.wanted_rev::int "wantedRev", c.wanted_run::int "wantedRun",
  c.signals, c.seen_rev::int "seenRev", c.run::int run, c.status, c.slot, c.restart_count "restartCount",
  (extract(epoch from c.restart_at - now()) * 1000)::float8 "restartInMs",
  (select jsonb_build_object('digest', i.digest, 'mediaType', i.media_type, 'config', i.config, 'layers', i.layers)
     from images i where i.project_id = c.project_id and i.digest = c.image_digest) image,
  (select coalesce(jsonb_agg(jsonb_build_object('id', p.id, 'containerPort', p.container_port, 'hostPort', p.host_port,
     'protocol', p.protocol, 'hostAddress', case when masklen(p.host_address) = 0 then null else host(p.host_address) end,
     'status', p.status) order by p.id), '[]') from ports p where p.container_id = c.id) ports`;

/** One container of this host; null: its row is gone (or is another host's). */
export async function readContainer(db: Db, hostId: string, id: string): Promise<InboxContainer | null> {
  const rows = await db.execute(sql`select ${columns} from containers c where c.id = ${id} and c.host_id = ${hostId}`);
  return (rows[0] as InboxContainer | undefined) ?? null;
}

/** The containers of this host whose wish was changed since the worker last settled them. */
export async function readInbox(db: Db, hostId: string): Promise<InboxContainer[]> {
  const rows = await db.execute(sql`
    select ${columns} from containers c where c.host_id = ${hostId} and c.wanted_rev <> c.seen_rev
    order by c.created_at limit 500`);
  return [...rows] as unknown as InboxContainer[];
}

/** Every container of this host, for adoption and for the comparison with the kernel: id, slot, status. */
export async function listHostContainers(
  db: Db,
  hostId: string,
): Promise<{ id: string; slot: number | null; status: ContainerStatus; wanted: Wanted }[]> {
  const rows = await db.execute(
    sql`select id, slot, status, wanted from containers where host_id = ${hostId} order by id`,
  );
  return [...rows] as unknown as { id: string; slot: number | null; status: ContainerStatus; wanted: Wanted }[];
}

/** Host-bound writes hold only while this is the host's newest session. */
export interface Fence {
  hostId: string;
  session: number;
}

const held = (fence: Fence) =>
  sql`exists (select from hosts h where h.id = ${fence.hostId} and h.session = ${fence.session})`;

/**
 * Writes what was seen of a container, with an event when `event` names one, and wakes those who wait, in one statement.
 * False: the row is gone, or a newer session of this host has taken over.
 */
export async function writeSeen(
  db: Db,
  fence: Fence,
  container: { id: string; projectId: string },
  patch: SeenPatch,
  event?: { type: string; data?: Record<string, unknown> },
): Promise<boolean> {
  const sets = [];
  if (patch.seenRev !== undefined) sets.push(sql`seen_rev = ${patch.seenRev}`);
  if (patch.run !== undefined) sets.push(sql`run = ${patch.run}`);
  if (patch.status !== undefined) sets.push(sql`status = ${patch.status}`);
  if (patch.slot !== undefined) sets.push(sql`slot = ${patch.slot}`);
  if (patch.ipAddress !== undefined) sets.push(sql`ip_address = ${patch.ipAddress}`);
  if (patch.imageDigest !== undefined) sets.push(sql`image_digest = ${patch.imageDigest}`);
  if (patch.pid !== undefined) sets.push(sql`pid = ${patch.pid}`);
  if (patch.exitCode !== undefined) sets.push(sql`exit_code = ${patch.exitCode}`);
  if (patch.reason !== undefined) sets.push(sql`reason = ${patch.reason}`);
  if (patch.detail !== undefined) sets.push(sql`detail = ${patch.detail}`);
  if (patch.oomKilled !== undefined) sets.push(sql`oom_killed = ${patch.oomKilled}`);
  if (patch.restartCount !== undefined) sets.push(sql`restart_count = ${patch.restartCount}`);
  if (patch.restartInMs !== undefined) {
    sets.push(
      patch.restartInMs === null
        ? sql`restart_at = null`
        : sql`restart_at = now() + make_interval(secs => ${patch.restartInMs / 1000})`,
    );
  }
  if (patch.started === true) sets.push(sql`started_at = now(), finished_at = null`);
  if (patch.finished === true) sets.push(sql`finished_at = now()`);
  if (patch.remove === true) sets.push(sql`wanted = 'removed', wanted_rev = wanted_rev + 1`);
  if (patch.signalsDelivered !== undefined) sets.push(sql`signals = signals[${patch.signalsDelivered + 1}::int:]`);
  const rows = await db.execute<{ seen: string }>(sql`
    with seen as (update containers set ${sql.join(sets, sql`, `)}
      where id = ${container.id} and host_id = ${fence.hostId} and ${held(fence)} returning id),
    told as (insert into events (project_id, type, subject_id, data)
      select ${container.projectId}, ${event?.type ?? ""}, id, ${JSON.stringify(event?.data ?? {})}::jsonb from seen
      where ${event !== undefined} returning project_id)
    select id seen, pg_notify('berth', id),
      (select pg_notify('berth', ${topics.events(container.projectId)}) from told limit 1) from seen`);
  return rows.length === 1;
}

/** Deletes the row of a container of which the host has nothing left; its ports go with it. */
export async function eraseContainer(
  db: Db,
  fence: Fence,
  container: { id: string; projectId: string },
): Promise<boolean> {
  const rows = await db.execute(sql`
    with gone as (delete from containers where id = ${container.id} and host_id = ${fence.hostId} and ${held(fence)} returning id),
    told as (insert into events (project_id, type, subject_id)
      select ${container.projectId}, 'container.removed', id from gone returning project_id)
    select pg_notify('berth', id), (select pg_notify('berth', ${topics.events(container.projectId)}) from told limit 1) from gone`);
  return rows.length === 1;
}

/** Records which ports are applied (`active`) and which no longer (`idle`), and deletes those taken away or refused. */
export async function writePorts(
  db: Db,
  fence: Fence,
  container: { id: string; projectId: string },
  change: {
    active?: string[];
    idle?: string[];
    gone?: string[];
    refused?: { id: string; reason: string; detail: string }[];
  },
): Promise<void> {
  const refused = change.refused ?? [];
  const gone = [...(change.gone ?? []), ...refused.map((port) => port.id)];
  await db.execute(sql`
    with on_host as (update ports set status = 'active'
        where id = any(${sql.param(change.active ?? [])}::text[]) and status = 'pending' and ${held(fence)} returning id),
    idle as (update ports set status = 'pending'
        where id = any(${sql.param(change.idle ?? [])}::text[]) and status = 'active' and ${held(fence)}),
    off_host as (delete from ports where id = any(${sql.param(gone)}::text[]) and ${held(fence)} returning id),
    told as (insert into events (project_id, type, subject_id, data)
      select ${container.projectId}, 'port.refused', r->>'id', r from jsonb_array_elements(${JSON.stringify(refused)}::jsonb) r
      returning project_id)
    select pg_notify('berth', id) from (select id from on_host union all select id from off_host union all select ${container.id}) t`);
}
