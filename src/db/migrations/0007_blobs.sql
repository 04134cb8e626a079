-- The blob store is collected by the API, whichever instance comes first; see image/collect-blobs.ts.

-- Blobs that no row needs, and since when. Whoever is about to count on a blob takes its row away; whoever removes a blob
-- holds its row meanwhile.
create table unneeded_blobs (
  digest text primary key,
  since timestamptz not null default now()
);
grant select, insert, delete on unneeded_blobs to berth_api;

-- The digests that some row of any project needs: images' layers, configs and manifests, cached steps' layers, contexts
-- of builds that have not ended.
create function berth_needed_blobs() returns setof text
  language sql stable security definer set search_path = public
  as $$
    select l->>'digest' from images, jsonb_array_elements(layers) l
    union select manifest->'config'->>'digest' from images
    union select digest from images
    union select result->'layer'->>'digest' from build_cache
    union select request->'source'->>'digest' from builds where status in ('queued', 'running') $$;

-- A job counts on what was needed, or was claimed, since it began: what was unneeded before every open job is nobody's. An
-- hour is for what is no job: an upload, a container's own pull.
create function berth_unneeded_before() returns timestamptz
  language sql stable security definer set search_path = public
  as $$ select least(now() - interval '1 hour', min(started_at)) from jobs where finished_at is null $$;
