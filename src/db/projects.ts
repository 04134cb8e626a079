import type { Amounts } from "../core/quota.ts";
import { behind, type Page, type Paged } from "./page.ts";
import type { Scope } from "./scope.ts";
import { read, type Sql, type Tx, time } from "./scope.ts";

/** What a project may have: its containers together, its ports, and builds that run at the same time. */
export interface Quota extends Amounts {
  runningBuilds: number;
}

/** What they have now. */
export type Usage = Quota;

export interface ProjectRow {
  id: string;
  name: string;
  createdAt: string;
}

export interface QuotaRow {
  max_containers: number;
  max_cpus: number;
  max_memory: string;
  max_disk: string;
  max_ports: number;
  max_running_builds: number;
}

interface RawProject {
  id: string;
  name: string;
  created_at: string;
}

const projectRow = (row: RawProject): ProjectRow => ({ id: row.id, name: row.name, createdAt: time(row.created_at) });

export function quotaOf(row: QuotaRow): Quota {
  return {
    containers: row.max_containers,
    cpus: row.max_cpus,
    memory: Number(row.max_memory),
    disk: Number(row.max_disk),
    ports: row.max_ports,
    runningBuilds: row.max_running_builds,
  };
}

/** A project that the scope sees, by id or by name; null when there is none. */
export async function findProject(sql: Sql, scope: Scope, idOrName: string): Promise<ProjectRow | null> {
  const rows = await read<RawProject>(
    sql,
    scope,
    sql`select id, name, created_at from projects where id = ${idOrName} or name = ${idOrName}`,
  );
  return rows.map(projectRow)[0] ?? null;
}

/** The projects that the scope sees: all for the operator, its own for others. */
export async function listProjects(sql: Sql, scope: Scope, page: Page): Promise<Paged<ProjectRow>[]> {
  const after = behind(sql, page, sql`created_at`, sql`id`);
  const rows = await read<RawProject>(
    sql,
    scope,
    sql`select id, name, created_at from projects where true ${after} order by projects.created_at desc, projects.id limit ${page.limit}`,
  );
  return rows.map((row) => ({ ...projectRow(row), cursor: row.created_at }));
}

/** Adds a project. A name that is taken fails on the constraint `projects_name_key`. */
export async function insertProject(tx: Tx, project: { id: string; name: string }): Promise<ProjectRow> {
  const rows = await tx<RawProject[]>`
    insert into projects (id, name) values (${project.id}, ${project.name}) returning id, name, created_at`;
  return rows.map(projectRow)[0] as ProjectRow;
}

export async function readQuota(sql: Sql, scope: Scope): Promise<Quota | null> {
  const rows = await read<QuotaRow>(
    sql,
    scope,
    sql`select max_containers, max_cpus, max_memory, max_disk, max_ports, max_running_builds
      from projects where id = ${scope.projectId}`,
  );
  return rows.map(quotaOf)[0] ?? null;
}

/** Changes the given limits; what runs already is not touched. */
export async function updateQuota(
  tx: Tx,
  projectId: string,
  change: { [K in keyof Quota]?: Quota[K] | undefined },
): Promise<Quota | null> {
  const rows = await tx<QuotaRow[]>`
    update projects set
      max_containers = coalesce(${change.containers ?? null}, max_containers),
      max_cpus = coalesce(${change.cpus ?? null}, max_cpus),
      max_memory = coalesce(${change.memory ?? null}, max_memory),
      max_disk = coalesce(${change.disk ?? null}, max_disk),
      max_ports = coalesce(${change.ports ?? null}, max_ports),
      max_running_builds = coalesce(${change.runningBuilds ?? null}, max_running_builds)
    where id = ${projectId}
    returning max_containers, max_cpus, max_memory, max_disk, max_ports, max_running_builds`;
  return rows.map(quotaOf)[0] ?? null;
}

/** What the project's containers, ports and builds take; containers that are being removed take nothing. */
export async function readUsage(sql: Sql, scope: Scope): Promise<Usage> {
  const [row] = await read<{
    containers: number;
    cpus: number;
    memory: string;
    disk: string;
    ports: number;
    running_builds: number;
  }>(
    sql,
    scope,
    sql`select c.*, (select count(*)::int from ports where project_id = ${scope.projectId}) as ports,
        (select count(*)::int from jobs where project_id = ${scope.projectId} and kind = 'build' and status = 'running') as running_builds
      from (select count(*)::int as containers, coalesce(sum(cpus), 0) as cpus, coalesce(sum(memory), 0)::bigint as memory,
          coalesce(sum(disk), 0)::bigint as disk
        from containers where project_id = ${scope.projectId} and wanted <> 'removed') c`,
  );
  return {
    containers: row?.containers ?? 0,
    cpus: row?.cpus ?? 0,
    memory: Number(row?.memory ?? 0),
    disk: Number(row?.disk ?? 0),
    ports: row?.ports ?? 0,
    runningBuilds: row?.running_builds ?? 0,
  };
}
