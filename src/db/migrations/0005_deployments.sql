-- Whether containers work, and the switch of a source's containers to what was built last.

-- null: it has no healthcheck, or does not run.
alter table containers add column health text check (health in ('starting', 'healthy', 'unhealthy'));

alter table jobs drop constraint jobs_kind_check;
alter table jobs add constraint jobs_kind_check check (kind in ('build', 'pull', 'push', 'source', 'deploy'));

-- One built image on its way to be what a source's ports lead to. `switching`: the ports' rows are the new container's,
-- the host may not have applied them yet. The source's current one is the last that succeeded.
create table deployments (
  id text primary key,
  project_id text not null references projects on delete cascade,
  source_id text not null references sources on delete cascade,
  build_id text references builds on delete set null,
  job_id text references jobs on delete set null,
  image_digest text not null,
  -- core/deploy.ts DeployTemplate: the source's, when the build ended.
  template jsonb not null,
  container_id text references containers on delete set null,
  -- Whose ports it took over; null: it is the first, or that one is gone.
  previous_container_id text references containers on delete set null,
  status text not null default 'pending' check (status in ('pending', 'starting', 'switching', 'succeeded', 'failed')),
  reason text,
  detail text,
  created_at timestamptz not null default now(),
  finished_at timestamptz
);
create index deployments_by_project on deployments (project_id, created_at desc, id);
create index deployments_by_source on deployments (source_id, created_at desc, id);
create index on deployments (build_id);
create index on deployments (container_id);
create index on deployments (previous_container_id);
-- A newer one takes the place of one that has not switched.
create unique index deployments_waiting on deployments (source_id) where status in ('pending', 'starting');
alter table deployments enable row level security;
create policy own_project on deployments to berth_api
  using (project_id = berth_project()) with check (project_id = berth_project());
grant select, update on deployments to berth_api;
