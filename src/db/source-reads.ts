import { BerthError } from "../core/errors.ts";
import type { SourceBuild, SourcePayload } from "../core/source.ts";
import type { ClaimedJob } from "./leases.ts";
import { type Pool, wake } from "./scope.ts";
import { buildHead, lockHead } from "./source-builds.ts";
import { topics } from "./wakeups.ts";

// What the worker that reads a source's ref reads and writes.

/** Where a source's repository is; null: it is gone, or has none elsewhere. */
export async function sourceUrl(sql: Pool, id: string): Promise<string | null> {
  const [row] = await sql<{ url: string | null }[]>`select url from sources where id = ${id}`;
  return row?.url ?? null;
}

/** What a ref was found to be. */
export interface ReadHead {
  url: string;
  commit: string;
  branch: string | null;
  /** What deliveries are told when that was built already. */
  known: string;
}

/** How a read ref went on: its build, and whether it began for this. */
export interface Reading {
  buildId: string | null;
  started: boolean;
}

/**
 * Builds what was read, when it is new, and tells the deliveries that asked for it.
 * @throws BerthError `not_found` when the source is gone; `unavailable` when it has another repository by now, or when
 * the job's lease is lost; `quota_exceeded` when the project has too many open jobs. Nothing was written then.
 */
export async function recordRead(sql: Pool, job: ClaimedJob, read: ReadHead): Promise<Reading> {
  const {
    ref,
    again,
    buildJobId,
    auth: sealed,
    registryAuth,
    secrets,
    secretsUrl,
  } = job.payload as unknown as SourcePayload;
  const payload = {
    ...(sealed?.origin === new URL(read.url).origin ? { auth: sealed.build } : {}),
    ...(registryAuth === undefined ? {} : { registryAuth }),
    // The source may have another repository since the read was asked for.
    ...(secrets === undefined || secretsUrl !== read.url ? {} : { secrets }),
  };
  const source = { id: job.subjectId ?? "", projectId: job.projectId };
  return sql.begin(async (tx) => {
    await lockHead(tx, source, ref);
    const held = await tx`
      select 1 from jobs where id = ${job.id} and epoch = ${job.epoch} and status = 'running' for update`;
    const [now] = await tx<{ url: string | null; subdirectory: string | null; build: SourceBuild }[]>`
      select url, subdirectory, build from sources where id = ${source.id}`;
    if (now === undefined || held.length === 0) throw new BerthError("unavailable", "The lease is lost.");
    const [before] = await tx<{ id: string }[]>`select id from builds where job_id = ${buildJobId}`;
    // An earlier attempt began it and was cut off behind that. Who was told of a later commit has asked again.
    if (before !== undefined) return { buildId: before.id, started: true };
    const { url, subdirectory, build } = now;
    if (url !== read.url) throw new BerthError("unavailable", "The source was changed while it was read.");
    const { commit, branch } = read;
    const unfetched = { digest: null, sizeBytes: null };
    const context = { kind: "git" as const, url, ref: branch, subdirectory, commit, ...unfetched };
    const made = await buildHead(
      tx,
      { ...source, build },
      { ref, context, again: again === true, job: { id: buildJobId, payload } },
    );
    const told = await tx<{ id: string }[]>`
      update deliveries set status = ${made.started ? "building" : "ignored"}, build_id = ${made.buildId},
        detail = ${made.started ? null : read.known}
      where job_id = ${job.id} and status = 'received' returning id`;
    await wake(tx, ...told.map(({ id }) => topics.resource(id)));
    return made;
  });
}
