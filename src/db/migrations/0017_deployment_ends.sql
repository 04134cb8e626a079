-- When a deployment came to its status: what it waits for there has a time limit.
alter table deployments add column moved_at timestamptz not null default now();
grant update (moved_at) on deployments to berth_worker;

-- Deletes what has served its time: events, deliveries, ended jobs and deployments after 7 days, idempotency keys after one,
-- unused steps after 14. A deployment stays while its container is there, and while it is its source's last that succeeded.
create or replace function berth_delete_expired() returns void
  language sql security definer set search_path = public, pg_temp
  as $$
    delete from events where at < now() - interval '7 days';
    delete from idempotency_keys where created_at < now() - interval '1 day';
    -- Before their jobs, which know how they ended.
    delete from deliveries where received_at < now() - interval '7 days';
    delete from jobs where finished_at < now() - interval '7 days';
    delete from deployments d where finished_at < now() - interval '7 days' and container_id is null
      and (status = 'failed' or exists (select from deployments later where later.source_id = d.source_id
        and later.status = 'succeeded' and (later.created_at, later.id) > (d.created_at, d.id)));
    delete from build_cache where used_at < now() - interval '14 days' $$;
