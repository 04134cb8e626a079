import {
  type DeployedContainer,
  type DeploymentView,
  type DeployTemplate,
  type HeldPort,
  type PortPlan,
} from "../core/deploy.ts";
import { BerthError } from "../core/errors.ts";
import { appendEvent } from "./events.ts";
import type { ClaimedJob } from "./leases.ts";
import { type Sql, type Tx, wake } from "./scope.ts";
import { topics } from "./wakeups.ts";

// What the worker that drives a deployment reads and writes. Every transaction begins with `holdLease`.

/** A deployment as its driver sees it. */
export interface DeploymentRun extends DeploymentView {
  id: string;
  projectId: string;
  sourceId: string;
  sourceName: string;
  imageDigest: string;
  imageReference: string;
  template: DeployTemplate;
  containerId: string | null;
  hostId: string | null;
}

/** null: it is gone, with its source. */
export async function readDeploymentRun(sql: Sql, id: string): Promise<DeploymentRun | null> {
  const rows = await sql<(Omit<DeploymentRun, "container"> & { container: DeployedContainer | null })[]>`
    select d.id, d.project_id "projectId", d.source_id "sourceId", s.name "sourceName", d.image_digest "imageDigest",
      coalesce((select b.tags[1] from builds b where b.id = d.build_id), d.image_digest) "imageReference", d.template,
      d.status, (extract(epoch from now() - d.moved_at) * 1000)::float8 "ageMs", d.container_id "containerId",
      c.host_id "hostId",
      case when c.id is not null then jsonb_build_object('wanted', c.wanted, 'status', c.status,
        'restartCount', c.restart_count, 'health', c.health, 'exitCode', c.exit_code, 'reason', c.reason,
        'detail', c.detail, 'ranMs', coalesce(extract(epoch from now() - c.started_at) * 1000, 0)::float8,
        'pendingPorts', (select count(*) from ports p where p.container_id = c.id and p.status = 'pending')) end container,
      case when c.reason = 'host_port_in_use' then (select (e.data->>'hostPort')::int from events e
        where e.project_id = d.project_id and e.subject_id = c.id and e.type = 'container.failed'
        order by e.id desc limit 1) end "refusedPort",
      (select coalesce(jsonb_agg(p->'hostPort'), '[]') from jsonb_array_elements(d.template->'spec'->'ports') p
        where p ? 'hostPort') "namedPorts",
      (select coalesce(jsonb_agg(jsonb_build_object('wanted', o.wanted, 'status', o.status,
          'stopTimeoutSeconds', coalesce((o.spec->>'stopTimeoutSeconds')::int, 0))), '[]') from containers o
        where o.id in (${earlier(sql)}) and o.wanted <> 'removed') others,
      exists (select from deployments o where o.source_id = d.source_id and o.id <> d.id and o.status = 'switching')
        "otherSwitching"
    from deployments d join sources s on s.id = d.source_id left join containers c on c.id = d.container_id
    where d.id = ${id}`;
  return rows[0] ?? null;
}

/** The containers of the source's deployments before `d`, but for its own. */
const earlier = (sql: Sql) => sql`
  select e.container_id from deployments e where e.source_id = d.source_id and e.container_id <> d.container_id
    and (e.created_at, e.id) < (d.created_at, d.id)`;

/** Keeps the job this worker's until the transaction ends. @throws BerthError `unavailable` when it no longer is */
export async function holdLease(tx: Tx, job: ClaimedJob): Promise<void> {
  const held = await tx`
    select from jobs where id = ${job.id} and epoch = ${job.epoch} and status = 'running' for share`;
  if (held.length === 0) throw new BerthError("unavailable", "The lease is lost.");
}

/** The container that the source's ports lead to, and its ports; null: there is none. */
export interface Before {
  containerId: string;
  hostId: string;
  ports: HeldPort[];
}

export async function readBefore(tx: Tx, run: DeploymentRun): Promise<Before | null> {
  const rows = await tx<Before[]>`
    select c.id "containerId", c.host_id "hostId", ${portsOf(tx, tx`c.id`)} ports
    from deployments d join containers c on c.id = d.container_id
    where d.source_id = ${run.sourceId} and d.id <> ${run.id} and d.status = 'succeeded' and c.wanted <> 'removed'
    order by d.created_at desc limit 1`;
  return rows[0] ?? null;
}

export async function readPorts(tx: Tx, containerId: string): Promise<HeldPort[]> {
  const [row] = await tx<{ ports: HeldPort[] }[]>`select ${portsOf(tx, tx`${containerId}`)} ports`;
  return row?.ports ?? [];
}

const portsOf = (tx: Tx, container: ReturnType<Tx>) => tx`
  (select coalesce(jsonb_agg(jsonb_build_object('id', p.id, 'containerPort', p.container_port, 'hostPort', p.host_port,
     'protocol', p.protocol, 'hostAddress', case when masklen(p.host_address) = 0 then null else host(p.host_address) end)
     order by p.created_at, p.id), '[]') from ports p where p.container_id = ${container} and p.status <> 'removing')`;

/** Moves a deployment on; false: it is not in the state that it was read in, a newer one has taken its place. */
export async function moveDeployment(
  tx: Tx,
  run: DeploymentRun,
  to: {
    status: "starting" | "switching" | "succeeded";
    containerId?: string;
    previousContainerId?: string | null;
    /** What its host has not confirmed. */
    doubt?: BerthError;
  },
): Promise<boolean> {
  const rows = await tx`
    update deployments set status = ${to.status}, container_id = coalesce(${to.containerId ?? null}, container_id),
      previous_container_id = coalesce(${to.previousContainerId ?? null}, previous_container_id),
      finished_at = case when ${to.status} = 'succeeded' then now() end,
      moved_at = case when status = ${to.status} then moved_at else now() end,
      reason = ${to.doubt?.code ?? null}, detail = ${to.doubt?.message ?? null}
    where id = ${run.id} and status = ${run.status} returning id`;
  if (rows.length === 0) return false;
  await appendEvent(tx, {
    projectId: run.projectId,
    type: `deployment.${to.status}`,
    subjectId: run.id,
    data: { sourceId: run.sourceId, containerId: to.containerId ?? run.containerId },
  });
  await wake(tx, topics.resource(run.id));
  return true;
}

/** Removes the deployment's container, which could not start. */
export async function dropContainer(tx: Tx, id: string): Promise<void> {
  const rows = await tx<{ hostId: string }[]>`
    update containers set wanted = 'removed', wanted_rev = wanted_rev + 1 where id = ${id} returning host_id "hostId"`;
  await wake(tx, ...rows.map(({ hostId }) => topics.host(hostId)));
}

/** Leads ports of the container before to the new one. The host applies the rows, each by one change of its firewall. */
export async function takePorts(tx: Tx, containerId: string, take: PortPlan["take"]): Promise<void> {
  await tx`
    update ports set container_id = ${containerId}, container_port = t.port, status = 'pending'
    from unnest(${take.map(({ id }) => id)}::text[], ${take.map((port) => port.containerPort)}::int[]) t (id, port)
    where ports.id = t.id and ports.status <> 'removing'`;
}

/**
 * Gives the new container its source's name, and the one that had it, if it is of the source too, a name of its own. A
 * container of another origin keeps it.
 */
export async function takeName(tx: Tx, run: DeploymentRun, containerId: string): Promise<void> {
  await tx`
    update containers set name = left(name, 56) || '-' || right(id, 6)
    where project_id = ${run.projectId} and name = ${run.sourceName} and id <> ${containerId}
      and id in (select d.container_id from deployments d where d.source_id = ${run.sourceId})`;
  await tx`
    update containers set name = ${run.sourceName} where id = ${containerId} and not exists (
      select from containers o where o.project_id = ${run.projectId} and o.name = ${run.sourceName})`;
}

/** Asks the source's earlier containers to stop. */
export async function stopEarlier(tx: Tx, run: Pick<DeploymentRun, "id">): Promise<void> {
  await tx`
    with stopped as (
      update containers set wanted = 'stopped', wanted_rev = wanted_rev + 1
      from deployments d where d.id = ${run.id} and containers.id in (${earlier(tx)}) and wanted in ('created', 'running')
      returning containers.host_id)
    select pg_notify('berth', ${topics.host("")} || host_id) from stopped`;
}

/** Removes those of them that have ended, or when `overdue` all that were asked to. */
export async function removeEarlier(tx: Tx, run: Pick<DeploymentRun, "id">, overdue: boolean): Promise<void> {
  await tx`
    with gone as (
      update containers set wanted = 'removed', wanted_rev = wanted_rev + 1
      from deployments d where d.id = ${run.id} and containers.id in (${earlier(tx)}) and wanted = 'stopped'
        and (${overdue}::boolean or containers.status in ('created', 'exited', 'failed'))
      returning containers.host_id)
    select pg_notify('berth', ${topics.host("")} || host_id) from gone`;
}
