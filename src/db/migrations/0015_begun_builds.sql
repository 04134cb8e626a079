-- What an attempt at a build begins with, for the statement that claims its job: as this is volatile it sees what the claim
-- before it has done, and with it the rows that are its host's from now on. null: the build is gone.
create function berth_begun_build(job text) returns jsonb language plpgsql volatile set search_path = public, pg_temp as $$
begin
  return (
    select jsonb_build_object('id', id, 'request', request,
      -- Lines of an earlier attempt stay.
      'nextSeq', (select coalesce(max(seq), 0) + 1 from build_logs where build_id = builds.id))
    from builds where job_id = job);
end $$;
revoke execute on function berth_begun_build from public;
grant execute on function berth_begun_build to berth_worker;
