-- db/leases.ts says what a claim promises; it is called as often as jobs are queued or end. Each statement of this function
-- sees what was committed before it, so that what runs is counted behind the lock.
create function berth_claim_jobs(claimer text, wanted text[], rooms int[], with_suspect boolean, others int, lease float8)
  returns setof jobs language plpgsql as $$
#variable_conflict use_column
begin
  perform pg_advisory_xact_lock(hashtextextended('claim', 0));
  return query
    with recursive room (kind, n) as (
      select * from unnest(wanted, rooms) where not exists (select from hosts where id = claimer and state = 'draining')),
    -- The projects and kinds that have queued jobs, by skipping from one to the next in the index.
    lane as (
      (select project_id, kind from jobs where status = 'queued' order by project_id, kind limit 1)
      union all
      select next.* from lane cross join lateral (
        select project_id, kind from jobs where status = 'queued' and (project_id, kind) > (lane.project_id, lane.kind)
        order by project_id, kind limit 1) next),
    busy as (select project_id, kind, count(*)::int n from jobs where status = 'running' group by project_id, kind),
    due as (
      select j.*, kind, coalesce(busy.n, 0) + place turn
      from lane join room using (kind) join projects p on p.id = lane.project_id left join busy using (project_id, kind)
      cross join lateral (
        select id, lost, created_at, row_number() over (order by created_at) place from jobs
        where project_id = lane.project_id and kind = lane.kind and status = 'queued' and run_at <= now()
          and (lost = 0 or with_suspect)
          and (after_job_id is null or (select a.status not in ('queued', 'running') from jobs a where a.id = jobs.after_job_id))
        order by created_at limit (select 1 + sum(n) / greatest((select count(*) from lane), 1) from room)::bigint) j
      where coalesce(busy.n, 0) + place <= case when kind = 'build' then p.max_running_builds else others end),
    chosen as materialized (
      select id from (select *, row_number() over (partition by kind order by turn, created_at) nth,
        row_number() over (partition by lost > 0 order by turn, created_at) suspect from due) ranked
      join room using (kind) where nth <= n and (lost = 0 or suspect = 1)),
    free as (select id from jobs join chosen using (id) where status = 'queued' for update of jobs skip locked),
    claimed as (
      update jobs set status = 'running', attempt = attempt + 1, epoch = epoch + 1, host_id = claimer,
        lease_until = now() + make_interval(secs => lease), started_at = coalesce(started_at, now())
      from free where jobs.id = free.id returning jobs.*),
    shown as (
      update builds set status = 'running', started_at = coalesce(builds.started_at, now())
      from claimed where job_id = claimed.id)
    select * from claimed;
end $$;
-- Claiming is the workers', who own the tables.
revoke execute on function berth_claim_jobs from public;
