import { BerthError } from "../core/errors.ts";
import type { JobKind, JobStatus, ShownError } from "../core/job.ts";
import { endDeployments } from "./deployment-ends.ts";
import { behind, type Page, type Paged, paged } from "./page.ts";
import type { Scope } from "./scope.ts";
import { type Fragment, lifetime, lock, read, type Sql, type Tx, together } from "./scope.ts";
import { topics } from "./wakeups.ts";

export interface JobRow {
  id: string;
  kind: JobKind;
  subjectId: string | null;
  status: JobStatus;
  attempt: number;
  cancelRequested: boolean;
  progress: Record<string, unknown> | null;
  result: Record<string, unknown> | null;
  error: ShownError | null;
  createdAt: string;
  startedAt: string | null;
  finishedAt: string | null;
}

function view(sql: Sql, where: Fragment): Fragment {
  return sql`
    select id, kind, subject_id as "subjectId", status, attempt, cancel_requested as "cancelRequested", progress, result,
      error, created_at as "createdAt", started_at as "startedAt", finished_at as "finishedAt" from jobs where ${where}`;
}

export async function findJob(sql: Sql, scope: Scope, id: string): Promise<JobRow | null> {
  const rows = await read<JobRow>(sql, scope, view(sql, sql`project_id = ${scope.projectId} and id = ${id}`));
  return rows.map(lifetime)[0] ?? null;
}

/** A page of the project's jobs, newest first. */
export async function listJobs(
  sql: Sql,
  scope: Scope,
  filter: { kind?: JobKind | undefined; status?: JobStatus | undefined },
  page: Page,
): Promise<Paged<JobRow>[]> {
  const after = behind(sql, page, sql`created_at`, sql`id`);
  const kind = filter.kind === undefined ? sql`` : sql`and kind = ${filter.kind}`;
  const status = filter.status === undefined ? sql`` : sql`and status = ${filter.status}`;
  const rows = await read<JobRow>(
    sql,
    scope,
    sql`${view(sql, sql`project_id = ${scope.projectId} ${kind} ${status} ${after}`)}
      order by jobs.created_at desc, jobs.id limit ${page.limit}`,
  );
  return paged(rows, lifetime);
}

/** Queues a job and wakes the workers. */
export async function insertJob(
  tx: Tx,
  job: {
    id: string;
    projectId: string;
    kind: JobKind;
    subjectId: string | null;
    payload: Record<string, unknown>;
    /** The job whose end it waits for. */
    afterJobId?: string | null;
    /** 3 unless told. */
    maxAttempts?: number;
  },
): Promise<void> {
  await tx`
    insert into jobs (id, project_id, kind, subject_id, payload, after_job_id, max_attempts)
    values (${job.id}, ${job.projectId}, ${job.kind}, ${job.subjectId}, ${JSON.stringify(job.payload)}::text::jsonb,
      ${job.afterJobId ?? null}, ${job.maxAttempts ?? 3})`;
  await tx`select pg_notify('berth', ${topics.jobs})`;
}

/**
 * Asks for a job's end. A queued one is cancelled at once (`ended`), its build or deployment with it; a running one by the worker that
 * has it. Null when the project has no such job.
 */
export async function cancelJob(
  tx: Tx,
  projectId: string,
  id: string,
): Promise<{ kind: JobKind; status: JobStatus; ended: boolean } | null> {
  const rows = await tx<{ kind: JobKind; status: JobStatus; ended: boolean }[]>`
    update jobs set
      cancel_requested = cancel_requested or status in ('queued', 'running'),
      status = case when status = 'queued' then 'cancelled' else status end,
      payload = case when status = 'queued' then payload - array['auth', 'secrets', 'registryAuth'] else payload end,
      finished_at = case when status = 'queued' then now() else finished_at end
    where project_id = ${projectId} and id = ${id}
    returning kind, status, coalesce(status = 'cancelled' and finished_at = now(), false) as ended`;
  const job = rows[0];
  if (job?.ended === true) {
    await tx`update builds set status = 'cancelled', finished_at = now() where project_id = ${projectId} and job_id = ${id}`;
    if (job.kind === "deploy") await endDeployments(tx, [id]);
  }
  return job ?? null;
}

/** How many jobs of a project may be open at a time, so that none fills the queue alone. */
const maxOpenJobs = 200;

/**
 * To be asked in the transaction that queues a job; others of the project wait until it has ended. Reads of sources don't
 * count: they are two of each ref at most, and wait for what counts.
 * @throws BerthError `quota_exceeded` when the project has too many jobs that have not ended.
 */
export async function checkOpenJobs(tx: Tx, projectId: string): Promise<void> {
  const [, open] = await together([lock(tx, `jobs:${projectId}`), countOpenJobs(tx, projectId)]);
  if (open >= maxOpenJobs) {
    throw new BerthError("quota_exceeded", `The project has ${String(maxOpenJobs)} jobs that have not ended.`);
  }
}

async function countOpenJobs(tx: Tx, projectId: string): Promise<number> {
  // Apart, as each has an index that ended jobs are not in.
  const [row] = await tx<{ n: number }[]>`
    select (select count(*) from jobs where project_id = ${projectId} and status = 'queued' and kind <> 'source')::int
      + (select count(*) from jobs where project_id = ${projectId} and status = 'running' and kind <> 'source')::int as n`;
  return row?.n ?? 0;
}
