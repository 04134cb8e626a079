-- Blobs that a project has sent to the registry for an image that is not recorded yet: within a day its manifest may name
-- them, and nobody else's. Until then they are kept.
create table uploaded_blobs (
  project_id text not null references projects on delete cascade,
  digest text not null,
  size_bytes bigint not null,
  at timestamptz not null default now(),
  primary key (project_id, digest)
);
alter table uploaded_blobs enable row level security;
create policy own_project on uploaded_blobs to berth_api
  using (project_id = berth_project()) with check (project_id = berth_project());
grant select, insert, update, delete on uploaded_blobs to berth_api;

create or replace function berth_needed_blobs() returns setof text
  language sql stable security definer set search_path = public, pg_temp
  as $$
    select l->>'digest' from images, jsonb_array_elements(layers) l
    union select manifest->'config'->>'digest' from images
    union select digest from images
    union select result->'layer'->>'digest' from build_cache
    union select request->'source'->>'digest' from builds where status in ('queued', 'running')
    union select digest from uploaded_blobs where at > now() - interval '1 day' $$;
