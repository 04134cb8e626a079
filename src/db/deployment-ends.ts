import type { BerthError } from "../core/errors.ts";
import type { Tx } from "./scope.ts";

/**
 * Ends the deployments of jobs that failed or were cancelled, in the transaction that settles those. The container that
 * never served is stopped and kept for its log until the source's next deployment. One that the ports lead to already
 * has succeeded, whatever became of its job: those before it are stopped, and removed by the next.
 */
export async function endDeployments(tx: Tx, jobIds: readonly string[]): Promise<void> {
  if (jobIds.length === 0) return;
  await tx`
    with ended as (
      update deployments d set finished_at = now(),
        status = case when d.status = 'switching' then 'succeeded' else 'failed' end,
        reason = case when d.status = 'switching' then null else coalesce(j.error->>'code', 'cancelled') end,
        detail = case when d.status = 'switching' then null else coalesce(j.error->>'message', 'It was cancelled.') end
      from jobs j where j.id = d.job_id and j.id = any(${[...jobIds]}::text[])
        and d.status in ('pending', 'starting', 'switching')
      returning d.*),
    stopped as (
      update containers set wanted = 'stopped', wanted_rev = wanted_rev + 1
      where wanted = 'running' and id in (
        select container_id from ended where status = 'failed'
        union select e.container_id from deployments e join ended d using (source_id)
        where d.status = 'succeeded' and (e.created_at, e.id) < (d.created_at, d.id)
          and e.container_id is distinct from d.container_id)
      returning host_id),
    told as (
      insert into events (project_id, type, subject_id, data)
      select project_id, 'deployment.' || status, id, jsonb_strip_nulls(jsonb_build_object('sourceId', source_id,
        'containerId', container_id, 'reason', reason, 'detail', detail)) from ended)
    select pg_notify('berth', t) from (
      select id from ended union all select 'events:' || project_id from ended
      union all select 'host:' || host_id from stopped) topics (t)`;
}

/** Ends the source's deployment that has not switched, and removes the container that it started. */
export async function endWaiting(tx: Tx, sourceId: string, why: BerthError): Promise<void> {
  // Apart: what its driver is committing just now, the container among it, only the next statement sees.
  await tx`select from deployments where source_id = ${sourceId} and status in ('pending', 'starting') for update`;
  await tx`
    with ended as (
      update deployments set status = 'failed', reason = ${why.code}, detail = ${why.message}, finished_at = now()
      where source_id = ${sourceId} and status in ('pending', 'starting') returning id, project_id, container_id),
    gone as (
      update containers set wanted = 'removed', wanted_rev = wanted_rev + 1 from ended where containers.id = container_id
      returning host_id),
    told as (
      insert into events (project_id, type, subject_id, data)
      select project_id, 'deployment.failed', id, jsonb_build_object('reason', ${why.code}::text) from ended)
    select pg_notify('berth', t) from (
      select id from ended union all select 'host:' || host_id from gone) topics (t)`;
}
