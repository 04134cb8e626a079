import type { ContainerSpec, ContainerStatus, RestartPolicy, Wanted } from "../core/container.ts";
import type { Health } from "../core/health.ts";
import { behind, type Page, type Paged, paged } from "./page.ts";
import type { Scope } from "./scope.ts";
import { type Fragment, lifetime, read, type Sql, type Tx } from "./scope.ts";

/** A published port as it is shown with its container. */
export interface ContainerPort {
  id: string;
  containerPort: number;
  hostPort: number;
  protocol: "tcp" | "udp";
  hostAddress: string;
  status: "pending" | "active" | "removing";
}

/** A container as the API reads it. `settled`: the host has done what was last wanted. */
export interface ContainerRow {
  id: string;
  name: string;
  spec: ContainerSpec;
  labels: Record<string, string>;
  imageReference: string;
  imageDigest: string | null;
  cpus: number;
  memory: number;
  pids: number;
  disk: number;
  wanted: Wanted;
  status: ContainerStatus;
  settled: boolean;
  hostId: string;
  hostAddress: string;
  ipAddress: string | null;
  exitCode: number | null;
  reason: string | null;
  detail: string | null;
  oomKilled: boolean;
  restartCount: number;
  health: Health | null;
  ports: ContainerPort[];
  createdAt: string;
  startedAt: string | null;
  finishedAt: string | null;
}

type Raw = Omit<ContainerRow, "memory" | "disk"> & { memory: string; disk: string };

/**
 * What a client is shown: what was seen, or the change that is wanted and was not seen yet. `settled` only says that
 * the host caught up with what is wanted and that no change is under way.
 */
function view(sql: Sql, where: Fragment): Fragment {
  return sql`
    select v.*, v.rev_seen and v.status in ('created', 'running', 'paused', 'exited', 'failed') as settled from (
      select c.id, c.name, c.spec, c.labels, c.image_reference as "imageReference", c.image_digest as "imageDigest",
        c.cpus, c.memory, c.pids, c.disk, c.wanted, c.wanted_rev = c.seen_rev as rev_seen,
        case
          when c.wanted = 'removed' then 'removing'
          when c.wanted_rev = c.seen_rev then c.status
          when c.wanted = 'running' and c.wanted_run > c.run and c.status in ('created', 'exited', 'failed') then 'starting'
          when c.wanted = 'running' and c.wanted_run > c.run and c.status in ('running', 'paused') then 'restarting'
          when c.wanted = 'stopped' and c.status in ('starting', 'running', 'paused', 'restarting') then 'stopping'
          else c.status
        end as status,
        c.host_id as "hostId", h.address as "hostAddress", c.ip_address as "ipAddress", c.exit_code as "exitCode",
        case when l.lost then 'host_lost' else c.reason end as reason,
        case when l.lost then format('The host %s has not been heard of lately: what the container does is not known.', h.name)
          else c.detail end as detail,
        c.oom_killed as "oomKilled", c.restart_count as "restartCount", c.health,
        (select coalesce(json_agg(json_build_object('id', p.id, 'containerPort', p.container_port, 'hostPort', p.host_port,
            'protocol', p.protocol, 'hostAddress', host(p.host_address), 'status', p.status) order by p.created_at, p.id), '[]')
          from ports p where p.container_id = c.id) as ports,
        c.created_at as "createdAt", c.started_at as "startedAt", c.finished_at as "finishedAt"
      from containers c join hosts h on h.id = c.host_id
        cross join lateral (select berth_host_state(h) = 'lost'
          and (c.status in ('starting', 'running', 'paused', 'restarting', 'stopping') or c.wanted_rev <> c.seen_rev) as lost) l
      where ${where}) v`;
}

const containerRow = (raw: Raw): ContainerRow => ({
  ...lifetime(raw),
  memory: Number(raw.memory),
  disk: Number(raw.disk),
});

/** The container with this id or name; null when the project has none. */
export async function findContainer(sql: Sql, scope: Scope, idOrName: string): Promise<ContainerRow | null> {
  // Names have no `_`, ids always do, so that one of the two indexes is used.
  const which = idOrName.includes("_") ? sql`c.id = ${idOrName}` : sql`c.name = ${idOrName}`;
  const rows = await read<Raw>(sql, scope, view(sql, sql`c.project_id = ${scope.projectId} and ${which}`));
  return rows.map(containerRow)[0] ?? null;
}

export interface ContainerFilter {
  labels: Record<string, string>;
  name?: string | undefined;
  status?: ContainerStatus | undefined;
  hostId?: string | undefined;
}

/** A page of the project's containers, newest first; `cursor` is the row's place for the next page. */
export async function listContainers(
  sql: Sql,
  scope: Scope,
  filter: ContainerFilter,
  page: Page,
): Promise<Paged<ContainerRow>[]> {
  const after = behind(sql, page, sql`c.created_at`, sql`c.id`);
  const labels =
    Object.keys(filter.labels).length === 0
      ? sql``
      : sql`and c.labels @> ${JSON.stringify(filter.labels)}::text::jsonb`;
  const name = filter.name === undefined ? sql`` : sql`and c.name = ${filter.name}`;
  const host = filter.hostId === undefined ? sql`` : sql`and c.host_id = ${filter.hostId}`;
  const where = sql`c.project_id = ${scope.projectId} ${labels} ${name} ${host} ${after}`;
  const status = filter.status === undefined ? sql`` : sql`where s.status = ${filter.status}`;
  const rows = await read<Raw>(
    sql,
    scope,
    sql`select s.* from (${view(sql, where)}) s ${status} order by s."createdAt" desc, s.id limit ${page.limit}`,
  );
  return paged(rows, containerRow);
}

export interface NewContainer {
  id: string;
  projectId: string;
  hostId: string;
  name: string;
  spec: ContainerSpec;
  labels: Record<string, string>;
  imageReference: string;
  imageDigest: string | null;
  cpus: number;
  memory: number;
  pids: number;
  disk: number;
  start: boolean;
}

/** Adds a container. A name that is taken fails on the constraint `containers_project_id_name_key`. */
export async function insertContainer(tx: Tx, c: NewContainer): Promise<void> {
  await tx`
    insert into containers (id, project_id, host_id, name, spec, labels, image_reference, image_digest, cpus, memory, pids,
      disk, wanted, wanted_run)
    values (${c.id}, ${c.projectId}, ${c.hostId}, ${c.name}, ${JSON.stringify(c.spec)}::text::jsonb,
      ${JSON.stringify(c.labels)}::text::jsonb, ${c.imageReference}, ${c.imageDigest}, ${c.cpus}, ${c.memory}, ${c.pids},
      ${c.disk}, ${c.start ? "running" : "created"}, ${c.start ? 1 : 0})`;
}

/** What a change of state needs to know; the row stays locked until the transaction ends. */
export interface LockedContainer {
  id: string;
  name: string;
  hostId: string;
  wanted: Wanted;
  status: ContainerStatus;
  wantedRun: number;
  wantedPaused: boolean;
  run: number;
  cpus: number;
  memory: number;
}

export async function lockContainer(tx: Tx, projectId: string, idOrName: string): Promise<LockedContainer | null> {
  const which = idOrName.includes("_") ? tx`id = ${idOrName}` : tx`name = ${idOrName}`;
  const rows = await tx<LockedContainer[]>`
    select id, name, host_id as "hostId", wanted, status, wanted_run::float8 as "wantedRun",
      wanted_paused as "wantedPaused", run::float8 as run, cpus, memory::float8 as memory
    from containers where project_id = ${projectId} and ${which} for update`;
  return rows[0] ?? null;
}

/** Wants a state, and with `newRun` a run of its own: the next start, or a restart. */
export async function want(tx: Tx, id: string, wanted: Wanted, newRun: boolean): Promise<void> {
  await tx`
    update containers set wanted = ${wanted}, wanted_rev = wanted_rev + 1, wanted_run = wanted_run + ${newRun ? 1 : 0}
    where id = ${id}`;
}

/** Wants the running process to stand still, or to go on. */
export async function wantPaused(tx: Tx, id: string, paused: boolean): Promise<void> {
  await tx`update containers set wanted_paused = ${paused}, wanted_rev = wanted_rev + 1 where id = ${id}`;
}

/** Queues a signal for the running process; with `end`, that process is the last one wanted. */
export async function queueSignal(tx: Tx, id: string, signal: number, end: boolean): Promise<void> {
  await tx`
    update containers set signals = signals || ${signal}::int, wanted_rev = wanted_rev + 1,
      wanted = case when ${end}::boolean and wanted = 'running' then 'stopped' else wanted end
    where id = ${id}`;
}

/** Changes what a container is to have; absent fields stay. Limits are its host's to apply. */
export async function updateContainer(
  tx: Tx,
  id: string,
  change: {
    name?: string | undefined;
    labels?: Record<string, string> | undefined;
    restartPolicy?: RestartPolicy | undefined;
    resources?: { cpus?: number | undefined; memory?: number | undefined; pids?: number | undefined } | undefined;
  },
): Promise<void> {
  const { cpus = null, memory = null, pids = null } = change.resources ?? {};
  await tx`
    update containers set
      cpus = coalesce(${cpus}, cpus), memory = coalesce(${memory}, memory), pids = coalesce(${pids}, pids),
      wanted_rev = wanted_rev + ${change.resources === undefined ? 0 : 1},
      name = coalesce(${change.name ?? null}, name),
      labels = coalesce(${change.labels === undefined ? null : JSON.stringify(change.labels)}::text::jsonb, labels),
      spec = spec || coalesce(${
        change.restartPolicy === undefined ? null : JSON.stringify({ restartPolicy: change.restartPolicy })
      }::text::jsonb, '{}')
    where id = ${id}`;
}
