-- Claiming goes by lanes: a project's queued jobs of one kind, oldest first. A claim looks at the head of each lane, so
-- that it costs as many look-ups as there are lanes, however long they are.
drop index jobs_queued;
create index jobs_queued on jobs (project_id, kind, created_at) where status = 'queued';

-- How many attempts ended with their worker. One that has lost a worker may be what killed it (db/leases.ts).
alter table jobs add column lost int not null default 0;

-- Jobs are deleted when they have served their time, and who waited for them is looked for then.
create index jobs_waiting on jobs (after_job_id) where after_job_id is not null;
