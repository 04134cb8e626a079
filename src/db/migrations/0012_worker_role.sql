-- What a worker may do with the database: every host logs in as itself (`berth_hst_…`), a member of berth_worker and of
-- nothing else, and is held to its own containers and to the projects whose jobs it runs. test/db/worker-role.test.ts lists
-- all of it, so that a new table or function has to be decided on.

do $$
declare granted regrole;
begin
  if not exists (select from pg_roles where rolname = 'berth_worker') then
    create role berth_worker nologin;
  elsif (select rolcanlogin from pg_roles where rolname = 'berth_worker') then
    -- It was how all hosts that had joined logged in, with the owner's rights.
    for granted in select roleid::regrole from pg_auth_members where member = 'berth_worker'::regrole loop
      execute format('revoke %s from berth_worker', granted);
    end loop;
    alter role berth_worker nologin password null;
  end if;
  -- No tables of their own for API and workers: one that has the name of a table of ours would be found in its place.
  execute format('revoke temporary on database %I from public', current_database());
end $$;
revoke create on schema public from public;

-- ── Whose session it is ─────────────────────────────────────────────────────────────────────────────────────

-- The host that has logged in, which no setting changes; null: somebody else has.
create function berth_host() returns text language sql stable parallel safe
  as $$ select case when starts_with(session_user::text, 'berth_hst_') then substr(session_user::text, 7) end $$;

-- Whether the host has containers of the project.
create function berth_serves(project text) returns boolean
  language sql stable security definer set search_path = public, pg_temp
  as $$ select exists (select from containers where host_id = berth_host() and project_id = project) $$;
create index on containers (host_id, project_id);

-- The projects of which the host runs a job of such a kind, or has ended one in this very transaction: a job's end begins
-- and ends deployments.
create function berth_projects_at_work(kinds text[]) returns text[]
  language sql stable security definer set search_path = public, pg_temp
  as $$ select coalesce(array_agg(distinct j.project_id), '{}') from (
          select project_id, kind from jobs where host_id = berth_host() and status = 'running'
          union all select project_id, kind from jobs where host_id = berth_host() and finished_at = now()) j
        where j.kind = any (kinds) $$;
create index jobs_ended on jobs (finished_at) where finished_at is not null;

-- ── What it may do ──────────────────────────────────────────────────────────────────────────────────────────
-- Columns that are not listed are not a worker's to write. `select … for update` needs the right to change some column, and
-- a policy; where only the lock is needed, the policy lets no changed row through.

alter table hosts enable row level security;
create policy all_hosts on hosts to berth_api using (true) with check (true);
create policy every_host on hosts for select to berth_worker using (true);
create policy own_host on hosts for update to berth_worker using (id = berth_host()) with check (id = berth_host());
grant select, update (name, address, agent_url, boot_id, session, cpus, memory, disk, port_first, port_last, reserved_ports,
  labels, heartbeat_at) on hosts to berth_worker;
-- The API goes where this says.
alter table hosts add constraint hosts_agent_of_joined check (join_token_id is null or agent_url like 'tls://%');

-- None is made but by a deployment: a container of a project is what makes the project's images the host's to use.
create policy own_read on containers for select to berth_worker using (host_id = berth_host());
create policy own_changed on containers for update to berth_worker using (host_id = berth_host());
create policy own_removed on containers for delete to berth_worker using (host_id = berth_host());
create policy deployed_read on containers for select to berth_worker
  using (project_id = any ((select berth_projects_at_work('{build, deploy}'))::text[]));
create policy deployed_made on containers for insert to berth_worker
  with check (project_id = any ((select berth_projects_at_work('{deploy}'))::text[]));
create policy deployed_changed on containers for update to berth_worker
  using (project_id = any ((select berth_projects_at_work('{build, deploy}'))::text[])
    and exists (select from deployments d where d.container_id = containers.id));
grant select, delete,
  insert (id, project_id, host_id, name, spec, labels, image_reference, image_digest, cpus, memory, pids, disk, wanted, wanted_run),
  update (name, image_digest, memory, wanted, wanted_rev, wanted_paused, signals, seen_rev, run, status, slot, ip_address, pid,
    exit_code, reason, detail, oom_killed, restart_count, restart_at, started_at, finished_at, health)
  on containers to berth_worker;

create policy own_read on ports for select to berth_worker using (host_id = berth_host());
create policy own_changed on ports for update to berth_worker using (host_id = berth_host());
create policy own_removed on ports for delete to berth_worker using (host_id = berth_host());
create policy deployed_read on ports for select to berth_worker
  using (project_id = any ((select berth_projects_at_work('{deploy}'))::text[]));
create policy deployed_made on ports for insert to berth_worker
  with check (project_id = any ((select berth_projects_at_work('{deploy}'))::text[]));
create policy deployed_changed on ports for update to berth_worker
  using (project_id = any ((select berth_projects_at_work('{deploy}'))::text[]));
grant select, delete,
  insert (id, project_id, container_id, host_id, container_port, host_port, protocol, host_address),
  update (container_id, container_port, status) on ports to berth_worker;

create policy quota on projects for select to berth_worker
  using (id = any ((select berth_projects_at_work('{deploy}'))::text[]));
grant select on projects to berth_worker;

create policy pulled on images to berth_worker
  using (berth_serves(project_id) or project_id = any ((select berth_projects_at_work('{build, pull, push, deploy}'))::text[]))
  with check (berth_serves(project_id) or project_id = any ((select berth_projects_at_work('{build, pull}'))::text[]));
grant select, insert on images to berth_worker;

create policy pulled on tags to berth_worker
  using (berth_serves(project_id) or project_id = any ((select berth_projects_at_work('{build, pull, push, deploy}'))::text[]))
  -- What is pulled has a registry in its name; the project's own names are its builds'.
  with check (project_id = any ((select berth_projects_at_work('{build}'))::text[])
    or repository ~ '^([^/]*[.:][^/]*|localhost)/'
      and (berth_serves(project_id) or project_id = any ((select berth_projects_at_work('{pull}'))::text[])));
grant select, insert, update (digest, updated_at) on tags to berth_worker;

create policy at_work on jobs for select to berth_worker
  using (host_id = berth_host() or project_id = any ((select berth_projects_at_work('{source, push}'))::text[]));
create policy own_jobs on jobs for update to berth_worker
  using (host_id = berth_host() and status = 'running') with check (host_id = berth_host());
-- Reads of a ref wait for its build.
create policy waiting_reads on jobs for update to berth_worker
  using (status = 'queued' and kind = 'source' and project_id = any ((select berth_projects_at_work('{source}'))::text[]))
  with check (status = 'queued' and kind = 'source');
create policy next_jobs on jobs for insert to berth_worker
  with check (kind = 'build' and project_id = any ((select berth_projects_at_work('{source}'))::text[])
    or kind = 'deploy' and project_id = any ((select berth_projects_at_work('{build}'))::text[]));
grant select, insert (id, project_id, kind, subject_id, payload, after_job_id, max_attempts),
  update (status, attempt, run_at, lease_until, payload, progress, result, error, finished_at, after_job_id)
  on jobs to berth_worker;

create policy at_work on builds for select to berth_worker
  using (project_id = any ((select berth_projects_at_work('{build, source, deploy}'))::text[]));
create policy own_jobs on builds for update to berth_worker
  using (exists (select from jobs j where j.id = job_id and j.host_id = berth_host() and j.status = 'running'));
create policy next_jobs on builds for insert to berth_worker
  with check (project_id = any ((select berth_projects_at_work('{source}'))::text[]));
grant select, insert (id, project_id, job_id, source_id, tags, request),
  update (status, request, steps, warnings, image_digest, error, finished_at) on builds to berth_worker;

create policy own_jobs on build_logs to berth_worker using (build_id in (
  select b.id from jobs j join builds b on b.job_id = j.id where j.host_id = berth_host() and j.status = 'running'));
grant select, insert on build_logs to berth_worker;

create policy at_work on build_cache to berth_worker
  using (project_id = any ((select berth_projects_at_work('{build}'))::text[]));
grant select, insert (project_id, key, result), update (result, used_at) on build_cache to berth_worker;

-- Not the sealed secrets: those that a job needs are sealed for that job.
create policy at_work on sources for select to berth_worker
  using (project_id = any ((select berth_projects_at_work('{build, source, deploy}'))::text[]));
create policy locked on sources for update to berth_worker
  using (project_id = any ((select berth_projects_at_work('{build, source}'))::text[])) with check (false);
grant select (id, project_id, name, url, subdirectory, build, deploy), update (created_at) on sources to berth_worker;

create policy at_work on source_heads to berth_worker
  using (project_id = any ((select berth_projects_at_work('{source}'))::text[]));
grant select, insert (source_id, project_id, ref), update (commit, build_id) on source_heads to berth_worker;

create policy at_work on deliveries to berth_worker
  using (project_id = any ((select berth_projects_at_work('{source}'))::text[]));
grant select (id, project_id, job_id, status), update (status, build_id, detail) on deliveries to berth_worker;

create policy at_work on deployments to berth_worker
  using (project_id = any ((select berth_projects_at_work('{build, deploy}'))::text[]));
grant select, insert (id, project_id, source_id, build_id, job_id, image_digest, template),
  update (status, container_id, previous_container_id, reason, detail, finished_at) on deployments to berth_worker;

create policy at_work on events for select to berth_worker
  using (project_id = any ((select berth_projects_at_work('{deploy}'))::text[]));
create policy told on events for insert to berth_worker
  with check (berth_serves(project_id)
    or project_id = any ((select berth_projects_at_work('{build, pull, push, source, deploy}'))::text[]));
grant select, insert (project_id, type, subject_id, data) on events to berth_worker;

-- ── What it has done for it ─────────────────────────────────────────────────────────────────────────────────

-- As before, for the host that asks.
create or replace function berth_claim_jobs(claimer text, wanted text[], rooms int[], with_suspect boolean, others int, lease float8)
  returns setof jobs language plpgsql security definer set search_path = public, pg_temp as $$
#variable_conflict use_column
begin
  if berth_host() <> claimer then
    raise insufficient_privilege using message = 'a host claims jobs for itself';
  end if;
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

-- Running jobs whose worker is gone become the host's (db/leases.ts): those whose lease has run out or whose host was
-- forgotten, or, when `own` says so, those that it had before; but for those that it holds.
create function berth_take_lost(taker text, held text[], own boolean, lease float8)
  returns setof jobs language plpgsql security definer set search_path = public, pg_temp as $$
begin
  if berth_host() <> taker then
    raise insufficient_privilege using message = 'a host takes jobs over for itself';
  end if;
  return query
    update jobs set epoch = epoch + 1, lost = lost + 1, host_id = taker, lease_until = now() + make_interval(secs => lease)
    where id in (
      select id from jobs where status = 'running' and id <> all (held)
        and (lease_until < now() or host_id is null or (own and host_id = taker))
      limit 100 for update skip locked)
    returning *;
end $$;

-- Deletes what has served its time: events, deliveries and ended jobs after 7 days, idempotency keys after one, unused steps
-- after 14.
create function berth_delete_expired() returns void
  language sql security definer set search_path = public, pg_temp
  as $$
    delete from events where at < now() - interval '7 days';
    delete from idempotency_keys where created_at < now() - interval '1 day';
    -- Before their jobs, which know how they ended.
    delete from deliveries where received_at < now() - interval '7 days';
    delete from jobs where finished_at < now() - interval '7 days';
    delete from build_cache where used_at < now() - interval '14 days' $$;

-- See claimBlob. What the table lists could be read by its digest.
create function berth_claim_blob(claimed text) returns void
  language sql security definer set search_path = public, pg_temp
  as $$ delete from unneeded_blobs where digest = claimed $$;

-- Of these diff ids, those of layers that images of any project or cached steps are made of. A digest that nobody tells
-- opens no blob, so that they are not listed.
create function berth_needed_layers(ids text[]) returns setof text
  language sql stable security definer set search_path = public, pg_temp
  as $$
    select n.id from (
      select l->>'diffId' id from images, jsonb_array_elements(layers) l
      union select result->'layer'->>'diffId' from build_cache) n where n.id = any (ids) $$;

-- ── Hosts come and go ───────────────────────────────────────────────────────────────────────────────────────

-- Lets a host log in, by what a password is checked by (db/host-login.ts). False: there is no such host.
create function berth_admit_host(host text, verifier text) returns boolean
  language plpgsql security definer set search_path = public, pg_temp
  as $$
declare
  login text := 'berth_' || host;
begin
  if host !~ '^hst_[0-9a-z]+$' or verifier !~ '^SCRAM-SHA-256\$[0-9A-Za-z+/=:$]+$' then
    raise invalid_parameter_value using message = 'neither a host nor a verifier';
  end if;
  if not exists (select from hosts where id = host) then return false; end if;
  if not exists (select from pg_roles where rolname = login) then
    execute format('create role %I connection limit 32 in role berth_worker', login);
  end if;
  execute format('alter role %I login password %L', login, verifier);
  return true;
end $$;

-- Forgets a lost host, or with `forced` one that is alive: its containers' rows go, each with an event that says why, nobody
-- waits for them any longer, and the host logs in no more. False: the host is unknown, or alive.
drop function berth_forget_host(text);
create function berth_forget_host(gone text, forced boolean) returns boolean
  language plpgsql security definer set search_path = public, pg_temp
  as $$
declare
  login text := 'berth_' || gone;
  told text;
begin
  select format(case berth_host_state(h) when 'lost' then 'The host %s was lost and is forgotten, and the container with it.'
      else 'The host %s is forgotten, and the container with it.' end, h.name)
    into told from hosts h where h.id = gone and (forced or berth_host_state(h) = 'lost') for update;
  if not found then return false; end if;
  insert into events (project_id, type, subject_id, data)
    select c.project_id, 'container.removed', c.id,
      jsonb_build_object('reason', 'host_lost', 'detail', told, 'name', c.name)
    from containers c where c.host_id = gone;
  perform pg_notify('berth', c.id), pg_notify('berth', 'events:' || c.project_id) from containers c where c.host_id = gone;
  delete from containers where host_id = gone;
  delete from hosts where id = gone;
  if exists (select from pg_roles where rolname = login) then
    execute format('alter role %I nologin password null', login);
    -- What is still connected may do nothing any more.
    execute format('revoke berth_worker from %I', login);
  end if;
  perform pg_notify('berth', 'forgotten:' || gone);
  return true;
end $$;

-- Ends what a forgotten host still has connected, and removes its login. Of a host that is known nothing is done.
create function berth_end_sessions(host text) returns void
  language plpgsql security definer set search_path = public, pg_temp
  as $$
declare
  login text := 'berth_' || host;
begin
  if host !~ '^hst_' or exists (select from hosts where id = host)
    or not exists (select from pg_roles where rolname = login) then
    return;
  end if;
  -- Only a member, or a superuser, may end sessions of a role.
  if not (select rolsuper from pg_roles where rolname = current_user) then
    execute format('grant %I to %I', login, current_user);
  end if;
  perform pg_terminate_backend(pid) from pg_stat_activity where usename = login and datname = current_database();
  execute format('drop role %I', login);
exception when dependent_objects_still_exist then
  -- It has made something of its own, and stays, without any right.
end $$;

-- ── Who may call what ───────────────────────────────────────────────────────────────────────────────────────

do $$
declare f record;
begin
  for f in select oid::regprocedure as name, prosecdef as definer from pg_proc
    where pronamespace = 'public'::regnamespace and starts_with(proname, 'berth_') loop
    execute format('revoke execute on function %s from public', f.name);
    if f.definer then execute format('alter function %s set search_path = public, pg_temp', f.name); end if;
  end loop;
end $$;
grant execute on function berth_project, berth_authenticate, berth_webhook_source, berth_host_state, berth_host_load,
  berth_free_port, berth_leased_kind, berth_needed_blobs, berth_unneeded_before, berth_claim_blob, berth_admit_host, berth_forget_host,
  berth_end_sessions to berth_api;
grant execute on function berth_host, berth_serves, berth_projects_at_work, berth_host_state, berth_host_load,
  berth_free_port, berth_claim_jobs, berth_take_lost, berth_claim_blob, berth_delete_expired, berth_needed_layers to berth_worker;
