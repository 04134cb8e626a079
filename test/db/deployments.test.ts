import type postgres from "postgres";
import { afterAll, beforeAll, beforeEach, describe, expect, inject, test, vi } from "vitest";
import { newId } from "../../src/core/ids.ts";
import type { JobOutcome } from "../../src/core/job.ts";
import { drizzle } from "../../src/db/drizzle.ts";
import { claimJobs, settleJobs } from "../../src/db/leases.ts";
import * as schema from "../../src/db/schema.ts";
import { transact } from "../../src/db/scope.ts";
import { deleteSource } from "../../src/db/sources.ts";
import { deleteExpired } from "../../src/db/upkeep.ts";
import { openHost } from "../support/host.ts";
import { createDatabase, type TestDatabase } from "../support/postgres.ts";

let database: TestDatabase;
let worker: postgres.Sql;
let hostId: string;
let projectId: string;
let sourceId: string;

beforeAll(async () => {
  database = await createDatabase(inject("postgresSocketDir"));
  hostId = (await openHost(drizzle(database.owner, { schema }))).id;
  worker = (await database.asHost(hostId)).sql;
});
afterAll(() => database.drop());

beforeEach(async () => {
  await database.owner`delete from jobs`;
  [projectId, sourceId] = [newId("project"), newId("source")];
  await database.owner`
    insert into projects (id, name, max_running_builds) values (${projectId}, ${projectId.slice(4)}, 10)`;
  await database.owner`
    insert into sources (id, project_id, name, provider, build, deploy, secret_sealed)
    values (${sourceId}, ${projectId}, 'web', 'berth', '{}', '{}', '')`;
});

/** A build of the source that runs, begun after those before it; its settling is left to the test. */
async function build(digest: string | null = "sha256:x") {
  const [id, jobId] = [newId("build"), newId("job")];
  await database.owner`
    insert into jobs (id, project_id, kind, subject_id, payload) values (${jobId}, ${projectId}, 'build', ${id}, '{}')`;
  await database.owner`
    insert into builds (id, project_id, job_id, source_id, image_digest, request)
    values (${id}, ${projectId}, ${jobId}, ${sourceId}, ${digest}, '{}')`;
  const [job] = await claimJobs(worker, hostId, { kinds: { build: 1 }, suspect: true });
  if (job === undefined) throw new Error("nothing to claim");
  return {
    id,
    settle: (outcome: JobOutcome = { status: "succeeded", result: {} }) => settleJobs(worker, [{ job, outcome }]),
  };
}

const deployments = () =>
  database.owner<{ id: string; buildId: string; status: string; reason: string | null }[]>`
    select id, build_id "buildId", status, reason from deployments where source_id = ${sourceId} order by created_at, id`;

const failed: JobOutcome = { status: "failed", error: { code: "not_healthy", message: "It is sick." } };

describe("a build that is settled", () => {
  test("is deployed in the same transaction when it has succeeded, and only then", async () => {
    const first = await build();
    await first.settle();
    await (await build()).settle({ ...failed });
    expect(await deployments()).toMatchObject([{ buildId: first.id, status: "pending" }]);
    const jobs =
      await database.owner`select kind, status from jobs where project_id = ${projectId} and kind = 'deploy'`;
    expect(jobs).toMatchObject([{ status: "queued" }]);
  });

  test("takes the place of a deployment that has not switched", async () => {
    for (const each of [await build(), await build()]) await each.settle();
    expect(await deployments()).toMatchObject([
      { status: "failed", reason: "superseded" },
      { status: "pending", reason: null },
    ]);
  });

  test("leaves one that is switching alone", async () => {
    await (await build()).settle();
    await database.owner`update deployments set status = 'switching' where source_id = ${sourceId}`;
    await (await build()).settle();
    expect((await deployments()).map(({ status }) => status)).toEqual(["switching", "pending"]);
  });

  test("is not deployed after a later one, however long it took", async () => {
    const [older, newer] = [await build(), await build()];
    await newer.settle();
    await older.settle();
    expect(await deployments()).toMatchObject([{ buildId: newer.id, status: "pending" }]);
  });

  test("is not deployed by a source that deploys nothing, or without one", async () => {
    const [orphan, quiet] = [await build(), await build()];
    await database.owner`update builds set source_id = null where id = ${orphan.id}`;
    await database.owner`update sources set deploy = null where id = ${sourceId}`;
    for (const each of [orphan, quiet]) await each.settle();
    expect(await deployments()).toEqual([]);
  });
});

describe("a deployment's job that is settled", () => {
  const settle = async (status: string, outcome: JobOutcome, containerId: string | null = null) => {
    await (await build()).settle();
    await database.owner`
      update deployments set status = ${status}, container_id = ${containerId}
      where source_id = ${sourceId} and status = 'pending'`;
    const [job] = await claimJobs(worker, hostId, { kinds: { deploy: 1 }, suspect: true });
    if (job === undefined) throw new Error("nothing to claim");
    await settleJobs(worker, [{ job, outcome }]);
    return (await deployments()).at(-1);
  };

  test("ends the deployment with its reason, unless the ports lead to it already", async () => {
    expect(await settle("starting", failed)).toMatchObject({ status: "failed", reason: "not_healthy" });
    const [before, now] = [await container(), await container()];
    await database.owner`update deployments set status = 'succeeded', container_id = ${before}`;
    expect(await settle("switching", failed, now)).toMatchObject({ status: "succeeded", reason: null });
    // Nothing leads to the one before any more.
    expect([await wanted(before), await wanted(now)]).toEqual(["stopped", "running"]);
  });

  test("leaves it open when it is to be tried again", async () => {
    const again: JobOutcome = { status: "retry", error: { code: "no_capacity", message: "Full." }, afterMs: 0 };
    expect(await settle("starting", again)).toMatchObject({ status: "starting", reason: null });
  });
});

const container = async (sql: postgres.Sql | postgres.TransactionSql = database.owner) => {
  const id = newId("container");
  await sql`
    insert into containers (id, project_id, host_id, name, spec, image_reference, cpus, memory, pids, disk, wanted)
    values (${id}, ${projectId}, ${hostId}, ${id.slice(4)}, '{}', 'web:1', 1, 1, 1, 1, 'running')`;
  return id;
};

const wanted = async (id: string) =>
  (await database.owner<{ wanted: string }[]>`select wanted from containers where id = ${id}`)[0]?.wanted;

describe("deployments that have ended", () => {
  /** One that was made, and has ended unless it is on its way, so many days ago. */
  const past = async (status: string, days: number, containerId: string | null = null) => {
    const id = newId("deployment");
    await database.owner`
      insert into deployments (id, project_id, source_id, image_digest, template, status, container_id, created_at, finished_at)
      select ${id}, ${projectId}, ${sourceId}, 'sha256:x', '{}', ${status}, ${containerId}, made,
        case when ${status} in ('succeeded', 'failed') then made end
      from (select now() - make_interval(days => ${days}) as made) then_`;
    return id;
  };

  test("are deleted after 7 days, but for the source's last and those whose container is there", async () => {
    const gone = [await past("succeeded", 30), await past("failed", 20)];
    const kept = [
      // Its container failed and is kept for its log, until the next deployment removes it.
      await past("failed", 15, await container()),
      await past("succeeded", 10),
      await past("failed", 6),
      await past("switching", 9),
    ];
    gone.push(await past("failed", 8));
    const left = async () => (await deployments()).map(({ id }) => id).sort();
    expect(await left()).toEqual([...gone, ...kept].sort());
    for (const each of ["first", "again"]) {
      await deleteExpired(drizzle(worker, { schema }));
      expect(await left(), each).toEqual([...kept].sort());
    }
  });
});

describe("a source that is removed during its deployment", () => {
  const remove = () => transact(database.api, { projectId }, (tx) => deleteSource(tx, projectId, sourceId));
  const place = async (status: string, containerId: string, sql: postgres.Sql | postgres.TransactionSql) =>
    sql`update deployments set status = ${status}, container_id = ${containerId}
      where source_id = ${sourceId} and status = 'pending'`;

  test("leaves no container that never served", async () => {
    await (await build()).settle();
    const id = await container();
    await place("starting", id, database.owner);
    await remove();
    expect(await wanted(id)).toBe("removed");
    const told =
      await database.owner`select data from events where type = 'deployment.failed' and project_id = ${projectId}`;
    expect(told).toMatchObject([{ data: { reason: "not_found" } }]);
  });

  test("nor one that was made in the very moment", async () => {
    await (await build()).settle();
    let removed = Promise.resolve();
    const id = await database.owner.begin(async (tx) => {
      const made = await container(tx);
      await place("starting", made, tx);
      removed = remove();
      const waiting = () => database.owner`
        select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`;
      await vi.waitUntil(async () => (await waiting()).length > 0);
      return made;
    });
    await removed;
    expect(await wanted(id)).toBe("removed");
  });

  test("leaves of two the one that the ports lead to", async () => {
    const [before, after] = [await container(), await container()];
    await (await build()).settle();
    await place("succeeded", before, database.owner);
    await (await build()).settle();
    await place("switching", after, database.owner);
    await remove();
    expect([await wanted(before), await wanted(after)]).toEqual(["stopped", "running"]);
  });
});
