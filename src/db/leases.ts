import type { JobKind, JobOutcome } from "../core/job.ts";
import type { Db, Transaction } from "./connect.ts";
import { and, eq, sql } from "./drizzle.ts";
import { notify } from "./notify.ts";
import { builds, events, jobs } from "./schema.ts";
import { topics } from "./wakeups.ts";

/** A job that this worker holds; `epoch` goes into every write about it. */
export interface ClaimedJob {
  id: string;
  projectId: string;
  kind: JobKind;
  subjectId: string | null;
  payload: Record<string, unknown>;
  attempt: number;
  maxAttempts: number;
  epoch: number;
}

/** How long a lease holds without being extended. A dead worker's jobs are free again after it. */
export const leaseSeconds = 15;

/**
 * Claims up to `limit` due jobs, oldest first, from the projects that have the fewest running; a project runs at most
 * its max_running_builds. The attempt is counted here, so that a job that kills its worker is not tried for ever.
 */
export async function claimJobs(db: Db, hostId: string, limit: number): Promise<ClaimedJob[]> {
  return db.transaction(async (tx) => {
    const rows = await tx.execute<Record<string, unknown> & { id: string }>(sql`
      with busy as (select project_id, count(*) n from jobs where status = 'running' group by project_id),
      next as (
        select j.id from jobs j join projects p on p.id = j.project_id left join busy b on b.project_id = j.project_id
        where j.status = 'queued' and j.run_at <= now() and coalesce(b.n, 0) < p.max_running_builds
          and not exists (select from jobs a where a.id = j.after_job_id and a.status in ('queued', 'running'))
        order by coalesce(b.n, 0), j.created_at
        limit ${limit} for update of j skip locked)
      update jobs set status = 'running', attempt = attempt + 1, epoch = epoch + 1, host_id = ${hostId},
        lease_until = now() + make_interval(secs => ${leaseSeconds}), started_at = coalesce(started_at, now())
      from next where jobs.id = next.id
      returning jobs.id, jobs.project_id "projectId", jobs.kind, jobs.subject_id "subjectId", jobs.payload, jobs.attempt,
        jobs.max_attempts "maxAttempts", jobs.epoch::int`);
    const claimed = [...rows] as unknown as ClaimedJob[];
    for (const job of claimed) {
      await tx
        .update(builds)
        .set({ status: "running", startedAt: sql`coalesce(started_at, now())` })
        .where(eq(builds.jobId, job.id));
      await notify(tx, topics.resource(job.id), ...(job.subjectId === null ? [] : [topics.resource(job.subjectId)]));
    }
    return claimed;
  });
}

/** Extends the leases still held; answers for each whether it is held and whether cancelling was asked. */
export async function extendLeases(
  db: Db,
  held: readonly { id: string; epoch: number }[],
): Promise<Map<string, { cancelRequested: boolean }>> {
  const rows = await db.execute<{ id: string; cancel_requested: boolean }>(sql`
    update jobs set lease_until = now() + make_interval(secs => ${leaseSeconds})
    from unnest(${sql.param(held.map((job) => job.id))}::text[], ${sql.param(held.map((job) => job.epoch))}::bigint[]) h (id, epoch)
    where jobs.id = h.id and jobs.epoch = h.epoch and jobs.status = 'running'
    returning jobs.id, jobs.cancel_requested`);
  return new Map([...rows].map((row) => [row.id, { cancelRequested: row.cancel_requested }]));
}

/** Shows how far a job is. False: the lease is lost. */
export async function reportProgress(db: Db, job: ClaimedJob, progress: Record<string, unknown>): Promise<boolean> {
  const rows = await db
    .update(jobs)
    .set({ progress })
    .where(and(eq(jobs.id, job.id), eq(jobs.epoch, job.epoch), eq(jobs.status, "running")))
    .returning({ id: jobs.id });
  return rows.length === 1;
}

/**
 * The one function that ends an attempt: the job, its build, the event and the wake-ups in one transaction. False: the
 * lease is lost, nothing was written.
 */
export async function settleJob(db: Db, job: ClaimedJob, ended: JobOutcome): Promise<boolean> {
  return db.transaction(async (tx) => {
    const outcome: JobOutcome =
      ended.status === "retry" && (await cancelWasAsked(tx, job)) ? { status: "cancelled" } : ended;
    const retry = outcome.status === "retry";
    const error = outcome.status === "failed" || retry ? outcome.error : null;
    const settled = await tx
      .update(jobs)
      .set({
        status: retry ? "queued" : outcome.status,
        ...(outcome.status === "retry" && outcome.uncounted === true ? { attempt: sql`attempt - 1` } : {}),
        ...(retry
          ? { runAt: sql`now() + make_interval(secs => ${outcome.afterMs / 1000})` }
          : // What it logged in to a registry with has served its time.
            { finishedAt: sql`now()`, payload: sql`${jobs.payload} - 'auth'` }),
        ...(outcome.status === "succeeded" ? { result: outcome.result } : {}),
        error,
        leaseUntil: null,
      })
      .where(and(eq(jobs.id, job.id), eq(jobs.epoch, job.epoch), eq(jobs.status, "running")))
      .returning({ status: jobs.status });
    const status = settled[0]?.status;
    if (status === undefined) return false;
    await tx
      .update(builds)
      .set({ status, error, ...(retry ? {} : { finishedAt: sql`now()` }) })
      .where(eq(builds.jobId, job.id));
    const subjectId = job.subjectId ?? job.id;
    if (!retry) {
      await tx.insert(events).values({
        projectId: job.projectId,
        type: `${job.kind}.${status}`,
        subjectId,
        data: error === null ? {} : { error },
      });
    }
    await notify(tx, topics.resource(job.id), topics.resource(subjectId), topics.events(job.projectId), topics.jobs);
    return true;
  });
}

/** Whether the job is to end. Its row stays locked: who asks later finds it settled. */
async function cancelWasAsked(tx: Transaction, job: ClaimedJob): Promise<boolean> {
  const rows = await tx.select({ asked: jobs.cancelRequested }).from(jobs).where(eq(jobs.id, job.id)).for("update");
  return rows[0]?.asked ?? false;
}

/** Running jobs whose lease has run out, taken over by this host so that they can be settled (`epoch` is the new one). */
export async function takeExpired(db: Db, hostId: string): Promise<ClaimedJob[]> {
  const rows = await db.execute(sql`
    update jobs set epoch = epoch + 1, host_id = ${hostId}, lease_until = now() + make_interval(secs => ${leaseSeconds})
    where id in (select id from jobs where status = 'running' and lease_until < now() limit 100 for update skip locked)
    returning id, project_id "projectId", kind, subject_id "subjectId", payload, attempt, max_attempts "maxAttempts", epoch::int`);
  return [...rows] as unknown as ClaimedJob[];
}
