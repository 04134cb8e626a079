import type { GitSource } from "../core/git-source.ts";
import { type SourceBuild, type SourcePayload } from "../core/source.ts";
import type { ClaimedJob } from "./leases.ts";
import type { Pool } from "./scope.ts";
import { wake } from "./scope.ts";
import { buildHead, lockHead } from "./source-builds.ts";
import { topics } from "./wakeups.ts";

// What the worker that reads a source's ref reads and writes.

/** A source as its refs are read; null: it is gone. */
export async function readingSource(
  sql: Pool,
  id: string,
): Promise<{ url: string | null; subdirectory: string | null; build: SourceBuild } | null> {
  const [row] = await sql<{ url: string | null; subdirectory: string | null; build: SourceBuild }[]>`
    select url, subdirectory, build from sources where id = ${id}`;
  return row ?? null;
}

/** How a read ref went on: its build, and whether it began for this. */
export interface Reading {
  buildId: string | null;
  started: boolean;
}

/**
 * Builds what was read, when it is new, and tells the deliveries that asked for it. null: the lease is lost, nothing was
 * written. The ref is locked before the job, as by who queues a read.
 */
export async function recordRead(
  sql: Pool,
  job: ClaimedJob,
  source: { id: string; build: SourceBuild },
  context: GitSource & { commit: string },
  ignored: string,
): Promise<Reading | null> {
  const { ref, again, buildJobId, auth } = job.payload as unknown as SourcePayload;
  const building = { ...source, projectId: job.projectId };
  return sql.begin(async (tx) => {
    await lockHead(tx, building, ref);
    const held = await tx`
      select 1 from jobs where id = ${job.id} and epoch = ${job.epoch} and status = 'running' for update`;
    if (held.length === 0) return null;
    const made = await buildHead(tx, building, {
      ref,
      context,
      again: again === true,
      job: { id: buildJobId, ...(auth === undefined ? {} : { auth: auth.build }) },
    });
    const told = await tx<{ id: string }[]>`
      update deliveries set status = ${made.started ? "building" : "ignored"}, build_id = ${made.buildId},
        detail = ${made.started ? null : ignored}
      where job_id = ${job.id} and status = 'received' returning id`;
    await wake(tx, ...told.map(({ id }) => topics.resource(id)), topics.events(job.projectId));
    return made;
  });
}
