-- Git repositories that build when they change, and what their hosts have told of them.

alter table jobs drop constraint jobs_kind_check;
alter table jobs add constraint jobs_kind_check check (kind in ('build', 'pull', 'push', 'source'));
-- The job whose end this one waits for: it is not claimed before.
alter table jobs add column after_job_id text references jobs on delete set null;
create index jobs_of_subject on jobs (subject_id) where status in ('queued', 'running');

create table sources (
  id text primary key,
  project_id text not null references projects on delete cascade,
  name text not null,
  provider text not null check (provider in ('github', 'gitlab', 'gitea', 'forgejo', 'bitbucket', 'generic', 'berth')),
  -- null exactly for `berth`: what is pushed to Berth itself.
  url text,
  -- Names of the branches that build; none: the repository's default branch.
  branches text[] not null default '{}',
  -- Directory of the repository that is the context; null: its root.
  subdirectory text,
  -- core/source.ts SourceBuild: what a build of it is asked, but for the context.
  build jsonb not null,
  -- What a successful build deploys; null: nothing.
  deploy jsonb,
  -- The webhooks' secret, and `{username, password}` for the repository as JSON: sealed (core/keys.ts) for the
  -- purposes `secret:<id>` and `auth:<id>`.
  secret_sealed text not null,
  auth_sealed text,
  created_at timestamptz not null default now(),
  unique (project_id, name),
  check ((provider = 'berth') = (url is null))
);
create index sources_by_project on sources (project_id, created_at desc, id);

alter table builds add column source_id text references sources on delete set null;
create index on builds (source_id);

-- The commit of a ref that was built last. Its row is locked by whoever reads the ref or starts its build. ref is a full
-- name, or HEAD for the default branch.
create table source_heads (
  source_id text not null references sources on delete cascade,
  project_id text not null references projects on delete cascade,
  ref text not null,
  commit text,
  build_id text references builds on delete set null,
  primary key (source_id, ref)
);
create index on source_heads (build_id);

-- A notice that a ref may have moved. `received`: job_id will read it; `building`: build_id builds what was read.
-- How these two ended, the job and the build know.
create table deliveries (
  id text primary key,
  source_id text not null references sources on delete cascade,
  project_id text not null references projects on delete cascade,
  -- The provider's id of the delivery, or one of ours when it gives none.
  delivery_key text not null,
  event text not null,
  -- null: the event is about no ref that builds.
  ref text,
  status text not null check (status in ('received', 'ignored', 'building')),
  detail text,
  job_id text references jobs on delete set null,
  build_id text references builds on delete set null,
  received_at timestamptz not null default now()
);
create unique index deliveries_once on deliveries (source_id, delivery_key, coalesce(ref, ''));
create index deliveries_by_source on deliveries (source_id, received_at desc, id);
create index on deliveries (job_id);
create index on deliveries (build_id);

do $$
declare t text;
begin
  foreach t in array array['sources', 'source_heads', 'deliveries'] loop
    execute format('alter table %I enable row level security', t);
    execute format('create policy own_project on %I to berth_api
      using (project_id = berth_project()) with check (project_id = berth_project())', t);
    execute format('grant select, insert, update, delete on %I to berth_api', t);
  end loop;
end $$;

-- Whose webhook it is. The one look-up of a source that precedes knowing the project.
create function berth_webhook_source(source text)
  returns table (project_id text, provider text, branches text[], secret_sealed text)
  language sql stable security definer set search_path = public
  as $$ select s.project_id, s.provider, s.branches, s.secret_sealed from sources s where s.id = source $$;
