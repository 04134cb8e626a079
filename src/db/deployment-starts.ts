import { BerthError } from "../core/errors.ts";
import { newId } from "../core/ids.ts";
import { endWaiting } from "./deployment-ends.ts";
import { appendEvent } from "./events.ts";
import { insertJob } from "./jobs.ts";
import type { Tx } from "./scope.ts";

/**
 * Begins the deployments of builds that have just succeeded, in the transaction that settles them: where the source has a
 * deploy template, and no later build of it was deployed. One that has not switched yet gives way.
 */
export async function deployBuilds(tx: Tx, jobIds: readonly string[]): Promise<void> {
  if (jobIds.length === 0) return;
  const built = await tx<{ sourceId: string; projectId: string; buildId: string }[]>`
    select s.id "sourceId", s.project_id "projectId", b.id "buildId" from builds b join sources s on s.id = b.source_id
    where b.job_id = any(${[...jobIds]}::text[]) and b.image_digest is not null and s.deploy is not null
      and not exists (select from deployments d join builds later on later.id = d.build_id
        where d.source_id = s.id and later.created_at > b.created_at)
    order by s.id, b.created_at for no key update of s`;
  const superseded = new BerthError("superseded", "A newer build of the source was deployed in its place.");
  for (const { sourceId, projectId, buildId } of built) {
    await endWaiting(tx, sourceId, superseded);
    const id = newId("deployment");
    const jobId = newId("job");
    await insertJob(tx, { id: jobId, projectId, kind: "deploy", subjectId: id, payload: {} });
    await tx`
      insert into deployments (id, project_id, source_id, build_id, job_id, image_digest, template)
      select ${id}, s.project_id, s.id, b.id, ${jobId}, b.image_digest, s.deploy from sources s, builds b
      where s.id = ${sourceId} and b.id = ${buildId}`;
    await appendEvent(tx, { projectId, type: "deployment.pending", subjectId: id, data: { sourceId, buildId } });
  }
}
