-- Jobs are deleted when they have served their time, and settled by the batch: each looks for its deployment.
create index on deployments (job_id);
