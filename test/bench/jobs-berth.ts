import { pino } from "pino";
import { newId } from "../../src/core/ids.ts";
import { connect } from "../../src/db/connect.ts";
import { migrate } from "../../src/db/migrate.ts";
import { topics, Wakeups } from "../../src/db/wakeups.ts";
import { JobRunner } from "../../src/engine/runner.ts";
import type { Services } from "../../src/engine/services.ts";
import { atOnce, connections, type JobEngine, projectCount, type Work } from "./job-engine.ts";

/** Berth's runner with builds that do the benchmark's work; rows of builds and events are written as for real ones. */
export async function berthJobs(url: string, work: Work): Promise<JobEngine> {
  const connection = connect({ url }, "owner", { max: connections });
  const { sql } = connection;
  await migrate(sql);
  const hostId = newId("host");
  const projects = Array.from({ length: projectCount }, () => newId("project"));
  await sql`
    insert into hosts (id, name, address, agent_url, cpus, memory, disk, port_first, port_last)
    values (${hostId}, 'bench', '', '', 1, 1, 1, 1, 2)`;
  await sql`insert into projects (id, name, max_running_builds) select id, id, 100 from unnest(${projects}::text[]) id`;
  const wakeups = await Wakeups.open(sql);
  const services = {
    config: { failpoint: null },
    connection,
    wakeups,
    host: { id: hostId, session: 1 },
    log: pino({ level: "warn" }),
  };
  const build = async (job: { payload: Record<string, unknown> }) => {
    await work(job.payload["key"] as number);
    return {};
  };
  const limits = { build: atOnce, pull: atOnce, push: atOnce, source: atOnce, deploy: atOnce };
  const runner = new JobRunner(services as unknown as Services, { build }, limits);
  runner.start();
  return {
    name: "Berth",
    async queue(jobs) {
      const rows = jobs.map(({ key, project }) => ({ key, project: projects[project] }));
      await sql`
        with jobs as (
          insert into jobs (id, project_id, kind, subject_id, payload)
          select 'job_' || gen_random_uuid(), j.project, 'build', 'bld_' || gen_random_uuid(), jsonb_build_object('key', key)
          from jsonb_to_recordset(${JSON.stringify(rows)}::text::jsonb) j (key int, project text)
          returning id, project_id, subject_id),
        builds as (
          insert into builds (id, project_id, job_id, request) select subject_id, project_id, id, '{}' from jobs)
        select pg_notify('berth', ${topics.jobs})`;
    },
    async close() {
      await runner.stop();
      await wakeups.close();
      await connection.close();
    },
  };
}
