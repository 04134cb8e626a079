import type { DeploymentStatus } from "../core/deploy.ts";
import type { ContainerPort } from "./containers.ts";
import { behind, type Page, type Paged, paged } from "./page.ts";
import { type Fragment, read, type Scope, type Sql, time, timeOrNull } from "./scope.ts";

export interface DeploymentRow {
  id: string;
  sourceId: string;
  buildId: string | null;
  jobId: string | null;
  imageDigest: string;
  containerId: string | null;
  previousContainerId: string | null;
  status: DeploymentStatus;
  reason: string | null;
  detail: string | null;
  /** Its container's, each with the host's address for clients. */
  ports: (ContainerPort & { hostId: string; publicAddress: string })[];
  createdAt: string;
  finishedAt: string | null;
}

function view(sql: Sql, where: Fragment): Fragment {
  return sql`
    select d.id, d.source_id as "sourceId", d.build_id as "buildId", d.job_id as "jobId", d.image_digest as "imageDigest",
      d.container_id as "containerId", d.previous_container_id as "previousContainerId", d.status, d.reason, d.detail,
      (select coalesce(json_agg(json_build_object('id', p.id, 'containerPort', p.container_port, 'hostPort', p.host_port,
          'protocol', p.protocol, 'hostAddress', host(p.host_address), 'status', p.status, 'hostId', p.host_id,
          'publicAddress', h.address) order by p.created_at, p.id), '[]')
        from ports p join hosts h on h.id = p.host_id where p.container_id = d.container_id) as ports,
      d.created_at as "createdAt", d.finished_at as "finishedAt"
    from deployments d where ${where}`;
}

const deploymentRow = (raw: DeploymentRow): DeploymentRow => ({
  ...raw,
  createdAt: time(raw.createdAt),
  finishedAt: timeOrNull(raw.finishedAt),
});

export async function findDeployment(sql: Sql, scope: Scope, id: string): Promise<DeploymentRow | null> {
  const rows = await read<DeploymentRow>(
    sql,
    scope,
    view(sql, sql`d.project_id = ${scope.projectId} and d.id = ${id}`),
  );
  return rows.map(deploymentRow)[0] ?? null;
}

/** The deployment of a build; null: it has none. */
export async function findDeploymentOfBuild(sql: Sql, scope: Scope, buildId: string): Promise<DeploymentRow | null> {
  const rows = await read<DeploymentRow>(
    sql,
    scope,
    view(sql, sql`d.project_id = ${scope.projectId} and d.build_id = ${buildId}`),
  );
  return rows.map(deploymentRow)[0] ?? null;
}

/** A page of the project's deployments, newest first. */
export async function listDeployments(
  sql: Sql,
  scope: Scope,
  filter: { sourceId?: string | undefined; buildId?: string | undefined; status?: DeploymentStatus | undefined },
  page: Page,
): Promise<Paged<DeploymentRow>[]> {
  const after = behind(sql, page, sql`d.created_at`, sql`d.id`);
  const source = filter.sourceId === undefined ? sql`` : sql`and d.source_id = ${filter.sourceId}`;
  const build = filter.buildId === undefined ? sql`` : sql`and d.build_id = ${filter.buildId}`;
  const status = filter.status === undefined ? sql`` : sql`and d.status = ${filter.status}`;
  const where = sql`d.project_id = ${scope.projectId} ${source} ${build} ${status} ${after}`;
  const rows = await read<DeploymentRow>(
    sql,
    scope,
    sql`${view(sql, where)} order by d.created_at desc, d.id limit ${page.limit}`,
  );
  return paged(rows, deploymentRow);
}
