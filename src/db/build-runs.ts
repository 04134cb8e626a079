import type { BuildStepView, BuildWarningView, KnownFile, StepResult, TarSource } from "../core/build-request.ts";
import type { GitSource } from "../core/git-source.ts";
import type { ImageReference } from "../core/reference.ts";
import type { Db } from "./connect.ts";
import { sql } from "./drizzle.ts";
import { type ImageRecord, recordImage } from "./image-records.ts";
import type { ClaimedJob } from "./leases.ts";
import { channel, topics } from "./wakeups.ts";

// What the worker that runs a build reads and writes. Every write names the job's epoch: a stale claimer changes nothing.

const held = (job: ClaimedJob) =>
  sql`exists (select from jobs where id = ${job.id} and epoch = ${job.epoch} and status = 'running')`;

/** Shows what a build's source was found to be. False: the lease is lost. */
export async function recordFetched(
  db: Db,
  job: ClaimedJob,
  buildId: string,
  source: GitSource | TarSource,
): Promise<boolean> {
  const rows = await db.execute(sql`
    update builds set request = jsonb_set(request, '{source}', ${JSON.stringify(source)}::jsonb)
    where id = ${buildId} and ${held(job)} returning 1`);
  return rows.length > 0;
}

/** Shows what a build's Dockerfile is warned of. False: the lease is lost. */
export async function recordWarnings(
  db: Db,
  job: ClaimedJob,
  buildId: string,
  warnings: readonly BuildWarningView[],
): Promise<boolean> {
  const rows = await db.execute(sql`
    update builds set warnings = ${JSON.stringify(warnings)}::jsonb where id = ${buildId} and ${held(job)} returning 1`);
  return rows.length > 0;
}

export interface LogRow {
  seq: number;
  step: number;
  stream: "stdout" | "stderr" | "info";
  text: string;
  at: Date;
}

/** Appends log lines and shows the steps' state (null: unchanged), and wakes who follows. False: the lease is lost. */
export async function reportBuild(
  db: Db,
  job: ClaimedJob,
  buildId: string,
  lines: readonly LogRow[],
  steps: readonly BuildStepView[] | null,
): Promise<boolean> {
  const column = <K extends keyof LogRow>(key: K) => sql.param(lines.map((line) => line[key]));
  const rows = await db.execute(sql`
    with lease as (select 1 where ${held(job)}),
    logged as (
      insert into build_logs (build_id, project_id, seq, step, stream, text, at)
      select ${buildId}, ${job.projectId}, l.seq, l.step, l.stream, l.text, l.at::timestamptz
      from lease, unnest(${column("seq")}::bigint[], ${column("step")}::int[], ${column("stream")}::text[],
        ${column("text")}::text[], ${sql.param(lines.map(({ at }) => at.toISOString()))}::text[])
        l (seq, step, stream, text, at)),
    shown as (
      update builds set steps = ${JSON.stringify(steps)}::jsonb where id = ${buildId} and ${steps !== null} and exists (table lease))
    select pg_notify(${channel}, ${topics.resource(buildId)}) from lease`);
  return rows.length > 0;
}

/** What a step with this key made before in the project; null: nothing that is known. */
export async function findCachedStep(db: Db, projectId: string, key: string): Promise<StepResult | null> {
  return (await findCached(db, projectId, key)) as StepResult | null;
}

/**
 * Remembers what a step of the job's build made, as long as the job is held. The latest result counts: an older one's
 * layer may be gone.
 */
export async function keepCachedStep(db: Db, job: ClaimedJob, key: string, result: StepResult): Promise<void> {
  await keepCached(db, job, key, result);
}

/** What a build of the project has downloaded; `key` as `fileKey` makes it. */
export async function findCachedFile(db: Db, projectId: string, key: string): Promise<KnownFile | null> {
  return ((await findCached(db, projectId, key)) as { file: KnownFile } | null)?.file ?? null;
}

/** Remembers what was downloaded, as long as the job is held. */
export async function keepCachedFile(db: Db, job: ClaimedJob, key: string, file: KnownFile): Promise<void> {
  await keepCached(db, job, key, { file });
}

/**
 * A result of the project's cache. That it was used is noted once an hour only: a write that waits for the disk would cost
 * an unchanged rebuild more than all the rest.
 */
async function findCached(db: Db, projectId: string, key: string): Promise<unknown> {
  const rows = await db.execute<{ result: unknown }>(sql`
    with touched as (
      update build_cache set used_at = now()
      where project_id = ${projectId} and key = ${key} and used_at < now() - interval '1 hour')
    select result from build_cache where project_id = ${projectId} and key = ${key}`);
  return rows[0]?.result ?? null;
}

/** Without waiting for the disk: the commit that settles the job makes it durable, and what a crash loses is done again. */
async function keepCached(
  db: Db,
  job: ClaimedJob,
  key: string,
  result: StepResult | { file: KnownFile },
): Promise<void> {
  await db.execute(sql`
    with kept as (
      insert into build_cache (project_id, key, result)
      select ${job.projectId}, ${key}, ${JSON.stringify(result)}::jsonb where ${held(job)}
      on conflict (project_id, key) do update set result = excluded.result, used_at = now())
    select set_config('synchronous_commit', 'off', true)`);
}

/**
 * Records the built image under its tags and on the build; the commit that settles the job makes it durable. False: the
 * lease is lost, nothing was written.
 */
export async function recordBuiltImage(
  db: Db,
  job: ClaimedJob,
  buildId: string,
  image: ImageRecord,
  references: readonly ImageReference[],
): Promise<boolean> {
  return recordImage(db, job.projectId, image, references, {
    lease: sql`select 1 from jobs where id = ${job.id} and epoch = ${job.epoch} and status = 'running' for update`,
    also: [
      sql`built as (update builds set image_digest = ${image.digest} where id = ${buildId} and exists (table lease))`,
    ],
    durable: false,
  });
}
