import { BerthError } from "../core/errors.ts";
import type { GitSource } from "../core/git-source.ts";
import { newId } from "../core/ids.ts";
import type { BuildPayload } from "../core/job.ts";
import type { SourceBuild } from "../core/source.ts";
import { insertBuild } from "./builds.ts";
import { appendEvent } from "./events.ts";
import { checkOpenJobs, insertJob } from "./jobs.ts";
import type { Tx } from "./scope.ts";

/** What of a source its builds need. */
export interface BuildingSource {
  id: string;
  projectId: string;
  build: SourceBuild;
}

/** What a ref was built at last; `openJobId`: the job of that build, when it has not ended. */
export interface Head {
  commit: string | null;
  buildId: string | null;
  openJobId: string | null;
}

/**
 * Keeps a source from being removed until the transaction ends. Who needs more locks takes them in this order: the source,
 * a ref of it, jobs, the project's number of jobs.
 * @throws BerthError `not_found` when it is gone
 */
export async function keepSource(tx: Tx, id: string): Promise<void> {
  const there = await tx`select 1 from sources where id = ${id} for key share`;
  if (there.length === 0) throw new BerthError("not_found", "There is no such source.");
}

/** Locks a ref of a source until the transaction ends, and answers what is known of it. @throws as `keepSource` */
export async function lockHead(tx: Tx, source: { id: string; projectId: string }, ref: string): Promise<Head> {
  await keepSource(tx, source.id);
  await tx`
    insert into source_heads (source_id, project_id, ref) values (${source.id}, ${source.projectId}, ${ref})
    on conflict do nothing`;
  const [head] = await tx<Head[]>`
    select h.commit, h.build_id as "buildId",
      (select j.id from builds b join jobs j on j.id = b.job_id
        where b.id = h.build_id and j.status in ('queued', 'running')) as "openJobId"
    from source_heads h where h.source_id = ${source.id} and h.ref = ${ref} for update of h`;
  return head ?? { commit: null, buildId: null, openJobId: null };
}

/** What a ref of a source is to be built at. */
export interface NewHead {
  ref: string;
  context: GitSource & { commit: string };
  /** Also when it is the commit that was built last. */
  again?: boolean;
  /** The build's job, whose id was chosen before, so that credentials could be sealed for it. */
  job: { id: string; payload: BuildPayload };
}

/**
 * Builds a ref of a source at a commit, unless it is the one that was built last. The one place that starts a source's
 * build: whatever tells of a commit, and however often, it is built once. A ref's builds run one after the other, and who
 * wants to read the ref waits for the last of them.
 * @throws BerthError `not_found` when the source is gone; `quota_exceeded` when the project has too many open jobs
 * @returns the build of the commit, null when it is no more; `started`: whether it began here
 */
export async function buildHead(
  tx: Tx,
  source: BuildingSource,
  head: NewHead,
): Promise<{ buildId: string | null; started: boolean }> {
  const { ref, context } = head;
  const { projectId } = source;
  const last = await lockHead(tx, source, ref);
  if (last.commit === context.commit && head.again !== true) return { buildId: last.buildId, started: false };
  await checkOpenJobs(tx, projectId);
  const buildId = newId("build");
  const { id: jobId, payload } = head.job;
  const { tags } = source.build;
  await insertJob(tx, {
    id: jobId,
    projectId,
    kind: "build",
    subjectId: buildId,
    payload: { ...payload },
    afterJobId: last.openJobId,
  });
  const request = { ...source.build, source: context };
  await insertBuild(tx, { id: buildId, projectId, jobId, sourceId: source.id, request });
  const data = { tags, sourceId: source.id, ref, commit: context.commit };
  await appendEvent(tx, { projectId, type: "build.queued", subjectId: buildId, data });
  await tx`
    update source_heads set commit = ${context.commit}, build_id = ${buildId}
    where source_id = ${source.id} and ref = ${ref}`;
  await tx`
    update jobs set after_job_id = ${jobId}
    where subject_id = ${source.id} and kind = 'source' and status = 'queued' and payload->>'ref' = ${ref}`;
  return { buildId, started: true };
}
