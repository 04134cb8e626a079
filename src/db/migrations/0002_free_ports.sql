-- Automatic ports pass by those that the operator reserves.
create or replace function berth_free_port(host text, proto text, from_port int, to_port int) returns int
  language sql stable security definer set search_path = public
  as $$ select g from generate_series(from_port, to_port) g
        where not exists (select from ports p where p.host_id = host and p.protocol = proto and p.host_port = g)
          and not exists (select from hosts h where h.id = host and g = any (h.reserved_ports))
        order by g limit 1 $$;

-- The last event of a subject: how a container ended that is gone.
create index events_by_subject on events (project_id, subject_id, id desc);
