-- Hosts that join from other machines.

-- Lets machines join as hosts. The token's text is derived from its id and the secret key (core/keys.ts): nothing here
-- can be used to join.
create table join_tokens (
  id text primary key,
  uses_left int not null check (uses_left >= 0),
  expires_at timestamptz not null,
  created_at timestamptz not null default now(),
  revoked_at timestamptz
);
grant select, insert, update on join_tokens to berth_api;

alter table hosts
  -- What containers can ask of the host that they are placed on.
  add column labels jsonb not null default '{}',
  -- null: the host holds the secret key itself.
  add column join_token_id text references join_tokens;

-- What the operator wants of a host. Whether it is lost is no column: its heartbeat and the database's clock tell.
alter table hosts drop constraint hosts_state_check;
update hosts set state = 'ready' where state <> 'draining';
alter table hosts alter column state set default 'ready',
  add constraint hosts_state_check check (state in ('ready', 'draining'));

-- A host that has joined and never begun its first session is not there yet.
create function berth_host_state(host hosts) returns text language sql stable
  as $$ select case
    when host.session = 0 or host.heartbeat_at < now() - interval '30 seconds' then 'lost' else host.state end $$;

grant insert on hosts to berth_api;

-- What a forgotten host had done of jobs stays on record.
alter table jobs drop constraint jobs_host_id_fkey,
  add constraint jobs_host_id_fkey foreign key (host_id) references hosts on delete set null;

-- The kind of a job that the host runs under this lease; null: it does not. Hosts are no tenant's.
create function berth_leased_kind(job text, host text, lease_epoch bigint) returns text
  language sql stable security definer set search_path = public
  as $$ select j.kind from jobs j
        where j.id = job and j.host_id = host and j.epoch = lease_epoch and j.status = 'running' $$;

-- Forgets a lost host: its containers' rows go, each with an event that says why, and nobody waits for them any longer.
-- False: the host is not lost, or unknown.
create function berth_forget_host(gone text) returns boolean
  language plpgsql security definer set search_path = public
  as $$
declare
  lost_name text;
begin
  select h.name into lost_name from hosts h where h.id = gone and berth_host_state(h) = 'lost' for update;
  if not found then return false; end if;
  insert into events (project_id, type, subject_id, data)
    select c.project_id, 'container.removed', c.id, jsonb_build_object('reason', 'host_lost',
      'detail', format('The host %s was lost and is forgotten, and the container with it.', lost_name), 'name', c.name)
    from containers c where c.host_id = gone;
  perform pg_notify('berth', c.id), pg_notify('berth', 'events:' || c.project_id) from containers c where c.host_id = gone;
  delete from containers where host_id = gone;
  delete from hosts where id = gone;
  return true;
end $$;
