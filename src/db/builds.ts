import type { BuildRequest, BuildStepView, BuildWarningView } from "../core/build-request.ts";
import type { JobStatus, ShownError } from "../core/job.ts";
import { behind, type Page, type Paged, paged } from "./page.ts";
import type { Scope } from "./scope.ts";
import { type Fragment, lifetime, read, type Sql, type Tx, time } from "./scope.ts";

export interface BuildRow {
  id: string;
  jobId: string;
  sourceId: string | null;
  status: JobStatus;
  tags: string[];
  imageDigest: string | null;
  request: BuildRequest;
  steps: BuildStepView[];
  warnings: BuildWarningView[];
  error: ShownError | null;
  createdAt: string;
  startedAt: string | null;
  finishedAt: string | null;
}

function view(sql: Sql, where: Fragment): Fragment {
  return sql`
    select id, job_id as "jobId", source_id as "sourceId", status, tags, image_digest as "imageDigest", request, steps, warnings, error,
      created_at as "createdAt", started_at as "startedAt", finished_at as "finishedAt" from builds where ${where}`;
}

export async function findBuild(sql: Sql, scope: Scope, id: string): Promise<BuildRow | null> {
  const rows = await read<BuildRow>(sql, scope, view(sql, sql`project_id = ${scope.projectId} and id = ${id}`));
  return rows.map(lifetime)[0] ?? null;
}

/** A page of the project's builds, newest first. */
export async function listBuilds(
  sql: Sql,
  scope: Scope,
  filter: {
    labels: Record<string, string>;
    status?: JobStatus | undefined;
    tag?: string | undefined;
    sourceId?: string | undefined;
  },
  page: Page,
): Promise<Paged<BuildRow>[]> {
  const after = behind(sql, page, sql`created_at`, sql`id`);
  const labels =
    Object.keys(filter.labels).length === 0
      ? sql``
      : sql`and request @> ${JSON.stringify({ labels: filter.labels })}::text::jsonb`;
  const status = filter.status === undefined ? sql`` : sql`and status = ${filter.status}`;
  const tag = filter.tag === undefined ? sql`` : sql`and ${filter.tag} = any(tags)`;
  const source = filter.sourceId === undefined ? sql`` : sql`and source_id = ${filter.sourceId}`;
  const rows = await read<BuildRow>(
    sql,
    scope,
    sql`${view(sql, sql`project_id = ${scope.projectId} ${labels} ${status} ${tag} ${source} ${after}`)}
      order by builds.created_at desc, builds.id limit ${page.limit}`,
  );
  return paged(rows, lifetime);
}

/** Adds a build whose job was inserted in this transaction. */
export async function insertBuild(
  tx: Tx,
  build: { id: string; projectId: string; jobId: string; sourceId?: string; request: BuildRequest },
): Promise<void> {
  await tx`
    insert into builds (id, project_id, job_id, source_id, tags, request)
    values (${build.id}, ${build.projectId}, ${build.jobId}, ${build.sourceId ?? null}, ${build.request.tags},
      ${JSON.stringify(build.request)}::text::jsonb)`;
}

export interface BuildLogRow {
  seq: number;
  step: number;
  stream: "stdout" | "stderr" | "info";
  text: string;
  at: string;
}

/** Up to `limit` log lines behind `after`, in order. */
export async function buildLogAfter(
  sql: Sql,
  scope: Scope,
  buildId: string,
  after: number,
  limit: number,
): Promise<BuildLogRow[]> {
  const rows = await read<BuildLogRow>(
    sql,
    scope,
    sql`select seq::float8 as seq, step, stream, text, at from build_logs
      where project_id = ${scope.projectId} and build_id = ${buildId} and build_logs.seq > ${after}
      order by build_logs.seq limit ${limit}`,
  );
  return rows.map((row) => ({ ...row, at: time(row.at) }));
}
