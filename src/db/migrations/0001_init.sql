-- Berth's schema. Two roles use it: the worker (owner, sees all projects) and the API (berth_api, under
-- row-level security of the request's project). Times are database times: no other clock is compared with them.

create extension if not exists btree_gist;

-- A tenant. The first is `default`; a project's name is the first part of its registry repositories.
create table projects (
  id text primary key,
  name text not null unique,
  -- Quota: what all containers of the project may have together (memory and disk in bytes).
  max_containers int not null default 100,
  max_cpus double precision not null default 1000,
  max_memory bigint not null default 1099511627776,
  max_disk bigint not null default 10995116277760,
  max_ports int not null default 200,
  max_running_builds int not null default 2,
  created_at timestamptz not null default now()
);

-- A token is known by the SHA-256 of its text. project_id null: the operator's, may act on any project.
create table tokens (
  id text primary key,
  project_id text references projects on delete cascade,
  role text not null check (role in ('operator', 'admin', 'deployer', 'viewer')),
  name text not null default '',
  hash bytea not null unique,
  created_at timestamptz not null default now(),
  revoked_at timestamptz,
  check ((role = 'operator') = (project_id is null))
);

-- A worker host. `session` counts the worker's starts: host-bound writes carry it, an older one changes no row.
create table hosts (
  id text primary key,
  name text not null unique,
  address text not null,
  agent_url text not null,
  boot_id text not null default '',
  session bigint not null default 0,
  state text not null default 'active' check (state in ('active', 'draining', 'gone')),
  cpus double precision not null,
  memory bigint not null,
  disk bigint not null,
  port_first int not null,
  port_last int not null,
  reserved_ports int[] not null default '{}',
  heartbeat_at timestamptz not null default now(),
  created_at timestamptz not null default now()
);

-- An image of a project: the manifest and config are small and kept here, its blobs are in the blob store.
create table images (
  project_id text not null references projects on delete cascade,
  digest text not null,
  media_type text not null,
  manifest jsonb not null,
  config jsonb not null,
  -- [{digest, diffId, sizeBytes, mediaType}], lowest first.
  layers jsonb not null,
  size_bytes bigint not null,
  created_at timestamptz not null default now(),
  primary key (project_id, digest)
);

-- repository is normalized: the project's own as `web`, a foreign one as `docker.io/library/debian`.
create table tags (
  project_id text not null,
  repository text not null,
  tag text not null,
  digest text not null,
  updated_at timestamptz not null default now(),
  primary key (project_id, repository, tag),
  foreign key (project_id, digest) references images on delete cascade
);
create index on tags (project_id, digest);

-- Movable work (builds, pulls, pushes). A claim takes a lease and raises the epoch; every later write by the
-- claimer names its epoch, so that a stale claimer changes no row. attempt is counted at the claim.
create table jobs (
  id text primary key,
  project_id text not null references projects on delete cascade,
  kind text not null check (kind in ('build', 'pull', 'push')),
  subject_id text,
  payload jsonb not null,
  status text not null default 'queued'
    check (status in ('queued', 'running', 'succeeded', 'failed', 'cancelled')),
  attempt int not null default 0,
  max_attempts int not null default 3,
  run_at timestamptz not null default now(),
  host_id text references hosts,
  epoch bigint not null default 0,
  lease_until timestamptz,
  cancel_requested boolean not null default false,
  progress jsonb,
  result jsonb,
  error jsonb,
  created_at timestamptz not null default now(),
  started_at timestamptz,
  finished_at timestamptz
);
create index jobs_queued on jobs (run_at, created_at) where status = 'queued';
create index jobs_running on jobs (lease_until) where status = 'running';
create index jobs_by_project on jobs (project_id, created_at desc, id);

create table builds (
  id text primary key,
  project_id text not null references projects on delete cascade,
  job_id text not null references jobs on delete cascade,
  status text not null default 'queued'
    check (status in ('queued', 'running', 'succeeded', 'failed', 'cancelled')),
  tags text[] not null default '{}',
  image_digest text,
  -- What was asked (core/build-request.ts), the context's blob digest included; secrets never.
  request jsonb not null,
  -- [{index, stage, instruction, line, status, cached, durationMs}]
  steps jsonb not null default '[]',
  error jsonb,
  created_at timestamptz not null default now(),
  started_at timestamptz,
  finished_at timestamptz
);
create index builds_by_project on builds (project_id, created_at desc, id);
create index on builds (job_id);

-- A build's log, in order of seq (1, 2, …, without gaps within a build).
create table build_logs (
  build_id text not null references builds on delete cascade,
  project_id text not null,
  seq bigint not null,
  step int not null,
  stream text not null check (stream in ('stdout', 'stderr', 'info')),
  text text not null,
  at timestamptz not null default now(),
  primary key (build_id, seq)
);

-- A finished step of a project's builds. key: SHA-256 of all that the step depends on.
create table build_cache (
  project_id text not null references projects on delete cascade,
  key text not null,
  -- What the step made: {layer: {digest, diffId, sizeBytes, mediaType} | null}
  result jsonb not null,
  created_at timestamptz not null default now(),
  used_at timestamptz not null default now(),
  primary key (project_id, key)
);

-- What is wanted of a container (by the API) and what was seen of it (by the host's worker), side by side.
-- The worker's inbox is every row of its host with wanted_rev <> seen_rev.
create table containers (
  id text primary key,
  project_id text not null references projects on delete cascade,
  host_id text not null references hosts,
  name text not null,
  -- core/container.ts ContainerSpec: what was asked at creation, defaults filled in.
  spec jsonb not null,
  labels jsonb not null default '{}',
  image_reference text not null,
  image_digest text,
  cpus double precision not null,
  memory bigint not null,
  pids int not null,
  disk bigint not null,
  wanted text not null check (wanted in ('created', 'running', 'stopped', 'removed')),
  -- Raised by each change of what is wanted.
  wanted_rev bigint not null default 1,
  -- Raised by start and restart: a run of a lower number is stopped first.
  wanted_run bigint not null default 0,
  -- Signals to deliver to the running process, oldest first; the worker empties it.
  signals int[] not null default '{}',
  seen_rev bigint not null default 0,
  run bigint not null default 0,
  status text not null default 'created' check (status in
    ('created', 'starting', 'running', 'paused', 'restarting', 'stopping', 'exited', 'failed', 'removing')),
  slot int,
  ip_address text,
  pid int,
  exit_code int,
  reason text,
  detail text,
  oom_killed boolean not null default false,
  restart_count int not null default 0,
  -- When the next automatic restart is due.
  restart_at timestamptz,
  created_at timestamptz not null default now(),
  started_at timestamptz,
  finished_at timestamptz,
  unique (project_id, name),
  unique (host_id, slot)
);
create index containers_inbox on containers (host_id) where wanted_rev <> seen_rev;
create index containers_by_host on containers (host_id, id);
create index containers_by_project on containers (project_id, created_at desc, id);
create index containers_by_label on containers using gin (labels);

-- A published port. host_address 0.0.0.0/0 means all of the host's; two rows clash when their addresses overlap.
create table ports (
  id text primary key,
  project_id text not null references projects on delete cascade,
  container_id text not null references containers on delete cascade,
  host_id text not null references hosts,
  container_port int not null check (container_port between 1 and 65535),
  host_port int not null check (host_port between 1 and 65535),
  protocol text not null check (protocol in ('tcp', 'udp')),
  host_address inet not null default '0.0.0.0/0',
  status text not null default 'pending' check (status in ('pending', 'active', 'removing')),
  created_at timestamptz not null default now(),
  constraint port_taken exclude using gist
    (host_id with =, protocol with =, host_port with =, host_address inet_ops with &&)
);
create index on ports (container_id);
create index ports_by_project on ports (project_id, created_at desc, id);

-- Durable events, written in the transaction that they tell of. A reader takes only rows whose xid is below every
-- transaction still open (pg_snapshot_xmin), in (xid, id) order, so that a late commit is never skipped.
create table events (
  id bigint generated always as identity primary key,
  xid xid8 not null default pg_current_xact_id(),
  project_id text not null references projects on delete cascade,
  type text not null,
  subject_id text not null,
  data jsonb not null default '{}',
  at timestamptz not null default now()
);
create index events_in_order on events (project_id, xid, id);

-- The first answer to a POST that carried an Idempotency-Key, written in the same transaction as its effect.
create table idempotency_keys (
  project_id text not null references projects on delete cascade,
  key text not null,
  request_hash bytea not null,
  status int not null,
  response jsonb not null,
  created_at timestamptz not null default now(),
  primary key (project_id, key)
);

-- ── Row-level security ──────────────────────────────────────────────────────────────────────────────────────
-- The API sets berth.project_id for each transaction; without it no tenant row is visible.

create function berth_project() returns text language sql stable parallel safe
  as $$ select nullif(current_setting('berth.project_id', true), '') $$;

do $$
declare t text;
begin
  if not exists (select from pg_roles where rolname = 'berth_api') then
    create role berth_api nologin;
  end if;
  foreach t in array array['images', 'tags', 'jobs', 'builds', 'build_logs', 'build_cache', 'containers', 'ports',
                           'events', 'idempotency_keys'] loop
    execute format('alter table %I enable row level security', t);
    execute format('create policy own_project on %I to berth_api
      using (project_id = berth_project()) with check (project_id = berth_project())', t);
    execute format('grant select, insert, update, delete on %I to berth_api', t);
  end loop;
end $$;

-- The operator (berth.operator = on) sees and makes projects and tokens; others see their own project.
alter table projects enable row level security;
create policy own_project on projects for select to berth_api using (id = berth_project());
create policy operator_all on projects to berth_api
  using (current_setting('berth.operator', true) = 'on') with check (current_setting('berth.operator', true) = 'on');
grant select, insert, update, delete on projects to berth_api;

alter table tokens enable row level security;
create policy own_project on tokens to berth_api
  using (project_id = berth_project()) with check (project_id = berth_project());
grant select, insert, update, delete on tokens to berth_api;

-- Hosts are no tenant's: the API reads them to place containers and to find their streams.
grant select on hosts to berth_api;
grant update (state) on hosts to berth_api;

-- Who holds a token. The one look-up that precedes knowing the project.
create function berth_authenticate(token_hash bytea)
  returns table (token_id text, role text, project_id text, project_name text)
  language sql stable security definer set search_path = public
  as $$ select t.id, t.role, t.project_id, p.name from tokens t left join projects p on p.id = t.project_id
        where t.hash = token_hash and t.revoked_at is null $$;

-- What all containers of a host hold together, whoever owns them: placement needs the sum, not the rows.
create function berth_host_load(host text) returns table (cpus double precision, memory bigint, disk bigint, containers bigint)
  language sql stable security definer set search_path = public
  as $$ select coalesce(sum(c.cpus), 0), coalesce(sum(c.memory), 0)::bigint, coalesce(sum(c.disk), 0)::bigint, count(*)
        from containers c where c.host_id = host and c.wanted in ('created', 'running', 'stopped') $$;

-- The lowest free port of a host at or above `from_port`, whoever holds the others; null when none is left.
create function berth_free_port(host text, proto text, from_port int, to_port int) returns int
  language sql stable security definer set search_path = public
  as $$ select g from generate_series(from_port, to_port) g
        where not exists (select from ports p where p.host_id = host and p.protocol = proto and p.host_port = g)
        order by g limit 1 $$;
