import type { BuildRequest } from "../core/build-request.ts";
import type { JobKind, JobOutcome, JobStatus } from "../core/job.ts";
import type { Transaction } from "./connect.ts";
import { endDeployments } from "./deployment-ends.ts";
import { deployBuilds } from "./deployment-starts.ts";
import { sql } from "./drizzle.ts";
import type { Pool, Tx } from "./scope.ts";
import { channel, topics } from "./wakeups.ts";

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
  /** How many earlier attempts ended with their worker: such a job is a suspect. */
  lost: number;
  /** What an attempt at a build begins with; null: it is none, the build is gone, or the job was not claimed to be done. */
  build: BegunBuild | null;
}

/** A build as an attempt finds it. */
export interface BegunBuild {
  id: string;
  request: BuildRequest;
  /** The number of its next log line. */
  nextSeq: number;
}

/** What a host has room for: so many more jobs of each kind, and whether one of them may be a suspect. */
export interface Room {
  kinds: Partial<Record<JobKind, number>>;
  suspect: boolean;
}

/** How long a lease holds without being extended. A dead worker's jobs are free again after it. */
export const leaseSeconds = 15;

/** What a project runs side by side of each kind but builds, whose number is the project's own. */
const othersPerProject = 4;

const claimedColumns = `id, project_id "projectId", kind, subject_id "subjectId", payload, attempt,
  max_attempts "maxAttempts", epoch::int, lost`;

/**
 * Claims due jobs, no more than there is room for; when it claimed some and there is room left, it may find more. Projects
 * take turns: next comes the one that has the least running of a kind, its oldest job first, and no project runs more of a
 * kind than it may. The attempt is counted here, so that a job that kills its worker is not tried for ever; and a host runs
 * one suspect at a time, so that the next death of a worker takes none along that had died before. A host that is drained
 * gets none. (A function of the database, `berth_claim_jobs`: claims of all hosts follow one another, since each counts
 * what runs, and a lock and what it guards cost one round trip there. Its commit waits for the disk: a claim that a crash of
 * the database took back would give its epoch to another host as well.)
 */
export async function claimJobs(pool: Pool, hostId: string, room: Room): Promise<ClaimedJob[]> {
  const [kinds, counts] = [Object.keys(room.kinds), Object.values(room.kinds)];
  return pool<ClaimedJob[]>`
    select ${pool.unsafe(claimedColumns)}, case kind when 'build' then berth_begun_build(id) end build from berth_claim_jobs(
      ${hostId}, ${kinds}::text[], ${counts}::int[], ${room.suspect}::boolean, ${othersPerProject}, ${leaseSeconds})`;
}

/**
 * Extends the leases still held; answers for each whether it is held and whether cancelling was asked. Jobs are locked in
 * the order of their ids, here and where they are settled, so that the two don't wait for each other.
 */
export async function extendLeases(
  pool: Pool,
  held: readonly Pick<ClaimedJob, "id" | "epoch">[],
): Promise<Map<string, { cancelRequested: boolean }>> {
  const rows = await pool<{ id: string; cancelRequested: boolean }[]>`
    with mine as (
      select id from jobs join unnest(${held.map((job) => job.id)}::text[], ${held.map((job) => job.epoch)}::bigint[]) h (id, epoch)
        using (id, epoch) where status = 'running' order by id for update of jobs)
    update jobs set lease_until = now() + make_interval(secs => ${leaseSeconds}) from mine where jobs.id = mine.id
    returning jobs.id, cancel_requested "cancelRequested"`;
  return new Map(rows.map(({ id, cancelRequested }) => [id, { cancelRequested }]));
}

/** Whether the job is still this worker's; if so, nobody takes it over before the transaction has ended. */
export async function holdsJob(tx: Transaction, job: Pick<ClaimedJob, "id" | "epoch">): Promise<boolean> {
  const rows = await tx.execute(sql`
    select 1 from jobs where id = ${job.id} and epoch = ${job.epoch} and status = 'running' for update`);
  return rows.length === 1;
}

/** Shows how far a job is. False: the lease is lost. */
export async function reportProgress(pool: Pool, job: ClaimedJob, progress: Record<string, unknown>): Promise<boolean> {
  const rows = await pool`
    update jobs set progress = ${JSON.stringify(progress)}::text::jsonb
    where id = ${job.id} and epoch = ${job.epoch} and status = 'running' returning id`;
  return rows.length === 1;
}

/** An attempt that is over, and how it ended. */
export interface EndedAttempt {
  job: ClaimedJob;
  outcome: JobOutcome;
}

/**
 * The one function that ends attempts: the jobs, their builds, the deployments that begin or end with them, the events and
 * the wake-ups in one transaction. What was asked to be cancelled is not tried again. Answers the ids of the jobs that it
 * settled; the lease of the others is lost, and nothing was written of them.
 */
export async function settleJobs(pool: Pool, ended: readonly EndedAttempt[]): Promise<Set<string>> {
  // Most concern no deployment, and are a transaction of one statement: one round trip, not four.
  const settled = new Set((await settle(pool, ended, { deploying: false })).map(({ id }) => id));
  const rest = ended.filter(({ job }) => !settled.has(job.id));
  if (rest.length === 0) return settled;
  const deploying = await pool.begin(async (tx) => {
    const rows = await settle(tx, rest, { deploying: true });
    const of = (kind: JobKind, statuses: readonly JobStatus[]) =>
      rows.filter((row) => row.kind === kind && statuses.includes(row.status)).map(({ id }) => id);
    await deployBuilds(tx, of("build", ["succeeded"]));
    await endDeployments(tx, of("deploy", ["failed", "cancelled"]));
    return rows;
  });
  for (const { id } of deploying) settled.add(id);
  return settled;
}

/** Settles those that are still held. `deploying`: also those that a deployment may begin or end with. */
async function settle(
  db: Pool | Tx,
  ended: readonly EndedAttempt[],
  { deploying }: { deploying: boolean },
): Promise<{ id: string; kind: JobKind; status: JobStatus }[]> {
  const column = <T>(of: (attempt: EndedAttempt) => T): T[] => ended.map(of);
  return db<{ id: string; kind: JobKind; status: JobStatus }[]>`
    with ended as (
      select * from unnest(${column(({ job }) => job.id)}::text[], ${column(({ job }) => job.epoch)}::bigint[],
        ${column(({ outcome }) => outcome.status)}::text[], ${column(errorText)}::text[], ${column(resultText)}::text[],
        ${column(({ outcome }) => ("afterMs" in outcome ? outcome.afterMs / 1000 : 0))}::float8[],
        ${column(({ outcome }) => Number("uncounted" in outcome))}::int[]
      ) e (id, epoch, status, error, result, after, uncounted)),
    mine as (
      select id from jobs join ended using (id, epoch)
      where jobs.status = 'running' and (${deploying}::boolean or kind <> 'deploy' and not exists (
        select from builds b join sources s on s.id = b.source_id where b.job_id = jobs.id and s.deploy is not null))
      order by id for update of jobs),
    settled as (
      update jobs set
        status = case when e.status <> 'retry' then e.status when cancel_requested then 'cancelled' else 'queued' end,
        error = case when e.status = 'retry' and cancel_requested then null else e.error::jsonb end,
        result = e.result::jsonb,
        attempt = attempt - uncounted,
        lease_until = null,
        run_at = case when e.status = 'retry' then now() + make_interval(secs => after) else run_at end,
        finished_at = case when e.status <> 'retry' or cancel_requested then now() end,
        -- What it logged in with, and the secrets of a build, have served their time.
        payload = case when e.status <> 'retry' or cancel_requested then payload - array['auth', 'secrets', 'registryAuth'] else payload end
      from mine join ended e using (id) where jobs.id = mine.id
      returning jobs.*, coalesce(subject_id, jobs.id) subject),
    shown as (
      update builds set status = s.status, error = s.error, finished_at = s.finished_at
      from settled s where builds.job_id = s.id),
    told as (
      insert into events (project_id, type, subject_id, data)
      select project_id, kind || '.' || status, subject, case when error is null then '{}' else jsonb_build_object('error', error) end
      from settled where finished_at is not null and kind <> 'deploy')
    select id, kind, status, pg_notify(${channel}, id), pg_notify(${channel}, subject), pg_notify(${channel}, 'events:' || project_id),
      pg_notify(${channel}, ${topics.jobs}) from settled`;
}

const errorText = ({ outcome }: EndedAttempt) => ("error" in outcome ? JSON.stringify(outcome.error) : null);
const resultText = ({ outcome }: EndedAttempt) => ("result" in outcome ? JSON.stringify(outcome.result) : null);

/**
 * Running jobs whose worker is gone: their lease has run out, or, when `own` says so, this host ran them before its
 * worker was started. They are taken over so that they can be settled (`epoch` is the new one), and are suspects from now
 * on. Jobs that this worker holds are not among them.
 */
export async function takeLost(
  pool: Pool,
  hostId: string,
  more: { held: readonly string[]; own: boolean },
): Promise<ClaimedJob[]> {
  return pool<ClaimedJob[]>`
    select ${pool.unsafe(claimedColumns)}, null build from berth_take_lost(
      ${hostId}, ${more.held}::text[], ${more.own}::boolean, ${leaseSeconds})`;
}
