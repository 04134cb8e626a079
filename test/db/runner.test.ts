import { once } from "node:events";
import { pino } from "pino";
import postgres from "postgres";
import { afterAll, afterEach, beforeAll, expect, inject, test } from "vitest";
import { BerthError } from "../../src/core/errors.ts";
import { newId } from "../../src/core/ids.ts";
import type { Connection } from "../../src/db/connect.ts";
import { cancelJob } from "../../src/db/jobs.ts";
import type { ClaimedJob } from "../../src/db/leases.ts";
import { wake } from "../../src/db/scope.ts";
import { topics, Wakeups } from "../../src/db/wakeups.ts";
import { type JobHandler, JobRunner } from "../../src/engine/runner.ts";
import type { Services } from "../../src/engine/services.ts";
import { createDatabase, type TestDatabase } from "../support/postgres.ts";

let database: TestDatabase;
let worker: Connection;
let wakeups: Wakeups;
const hostId = newId("host");
const projectId = newId("project");
const runners: JobRunner[] = [];
const atOnce = { build: 3, pull: 3, push: 3, source: 3, deploy: 3 };

beforeAll(async () => {
  database = await createDatabase(inject("postgresSocketDir"));
  wakeups = await Wakeups.open(database.api);
  const { owner } = database;
  await owner`
    insert into hosts (id, name, address, agent_url, cpus, memory, disk, port_first, port_last)
    values (${hostId}, 'h', '', '', 1, 1, 1, 1, 2)`;
  await owner`insert into projects (id, name, max_running_builds) values (${projectId}, 'p', 10)`;
  worker = await database.asHost(hostId);
});
afterEach(async () => {
  for (const runner of runners.splice(0)) await runner.stop();
  await database.owner`delete from jobs`;
});
afterAll(async () => {
  await wakeups.close();
  await database.drop();
});

/** A runner of builds on the test's host. */
function run(build: JobHandler): JobRunner {
  const services = {
    config: { failpoint: null },
    connection: worker,
    wakeups,
    host: { id: hostId, session: 1 },
    log: pino({ level: "silent" }),
  };
  const runner = new JobRunner(services as unknown as Services, { build }, atOnce);
  runners.push(runner);
  runner.start();
  return runner;
}

async function queue(): Promise<string> {
  const id = newId("job");
  await database.owner.begin(async (tx) => {
    await tx`insert into jobs (id, project_id, kind, payload) values (${id}, ${projectId}, 'build', '{}')`;
    await wake(tx, topics.jobs);
  });
  return id;
}

const row = async (id: string) =>
  (await database.owner`select status, attempt, lost, result, error from jobs where id = ${id}`)[0];
const becomes = (id: string, seen: object) => expect.poll(() => row(id)).toMatchObject(seen);

/** A handler that runs until it is aborted, and tells when it has begun. */
function endless() {
  const begun = Promise.withResolvers<ClaimedJob>();
  const handler: JobHandler = async (job, _, signal) => {
    begun.resolve(job);
    if (!signal.aborted) await once(signal, "abort");
    throw signal.reason;
  };
  return { begun: begun.promise, handler };
}

test("a job is run once it is queued, and its result kept", async () => {
  run(() => Promise.resolve({ digest: "d" }));
  const id = await queue();
  await becomes(id, { status: "succeeded", attempt: 1, result: { digest: "d" } });
});

test("cancelling reaches a running job at once by its wake-up, and within its poll when that is lost", async () => {
  for (const woken of [true, false]) {
    const { begun, handler } = endless();
    const runner = run(handler);
    const id = await queue();
    await begun;
    const asked = performance.now();
    await database.owner.begin(async (tx) => {
      await cancelJob(tx, projectId, id);
      if (woken) await wake(tx, topics.cancels);
    });
    await expect.poll(() => row(id), { interval: 20 }).toMatchObject({ status: "cancelled" });
    expect(performance.now() - asked).toBeLessThan(woken ? 900 : 2000);
    await runner.stop();
  }
});

test("a failure that can pass is tried again until the last attempt; another one is not", async () => {
  run((job) => {
    throw job.attempt === 1 ? new BerthError("registry_unreachable", "try again") : new BerthError("step_failed", "no");
  });
  const id = await queue();
  await becomes(id, { status: "queued", attempt: 1, error: { code: "registry_unreachable" } });
  await database.owner`update jobs set run_at = now() where id = ${id}`;
  await becomes(id, { status: "failed", attempt: 2, error: { code: "step_failed", message: "no" } });
});

test("a runner that stops gives back what it runs, and nothing of it counts", async () => {
  const { begun, handler } = endless();
  const runner = run(handler);
  const id = await queue();
  await begun;
  await runner.stop();
  expect(await row(id)).toMatchObject({ status: "queued", attempt: 0, lost: 0 });
});

test("a job whose worker dies each time is kept from workers after its last attempt", async () => {
  const id = await queue();
  for (let attempt = 1; attempt <= 3; attempt++) {
    await database.owner`update jobs set run_at = now(), status = 'running', attempt = attempt + 1, host_id = ${hostId},
      lease_until = now() + interval '1 hour' where id = ${id} and status = 'queued'`;
    // The host's next worker finds what its predecessor ran, however long its lease would still hold.
    const next = run(() => Promise.reject(new Error("not reached")));
    const seen =
      attempt < 3
        ? { status: "queued", attempt, lost: attempt, error: { code: "host_unavailable" } }
        : { status: "failed", attempt, lost: attempt, error: { code: "attempts_exhausted" } };
    await becomes(id, seen);
    await next.stop();
  }
  const told = await database.owner`select type from events where subject_id = ${id}`;
  expect([...told]).toEqual([{ type: "build.failed" }]);
});

test("a runner lets go of a job that another host has taken over, and changes nothing of it", async () => {
  const { begun, handler } = endless();
  const first = run(handler);
  const id = await queue();
  const held = await begun;
  // As if its worker could not reach the database: it holds the job, and another host takes it over.
  await database.owner`update jobs set epoch = epoch + 1 where id = ${id}`;
  await expect.poll(() => first.idle).toBe(true);
  expect(await row(id)).toMatchObject({ status: "running", attempt: held.attempt, result: null });
});

test("a job that comes back while its last attempt here still ends begins after that, and is held", async () => {
  const ended = Promise.withResolvers<undefined>();
  const begun: AbortSignal[] = [];
  const again = Promise.withResolvers<undefined>();
  let atOnceSeen = 0;
  let running = 0;
  run(async (_, _services, signal) => {
    atOnceSeen = Math.max(atOnceSeen, ++running);
    begun.push(signal);
    if (begun.length === 2) again.resolve(undefined);
    if (!signal.aborted) await once(signal, "abort");
    if (begun.length === 1) await ended.promise;
    running--;
    throw signal.reason;
  });
  const id = await queue();
  await expect.poll(() => begun.length).toBe(1);
  // Another host has taken it over, and given it back.
  await database.owner.begin(async (tx) => {
    await tx`update jobs set epoch = epoch + 1, status = 'queued', host_id = null where id = ${id}`;
    await wake(tx, topics.jobs);
  });
  await becomes(id, { status: "running", attempt: 2 });
  await expect.poll(() => begun[0]?.aborted).toBe(true);
  expect(begun).toHaveLength(1);
  ended.resolve(undefined);
  await again.promise;
  expect(atOnceSeen).toBe(1);
  // What is not held any more would not hear of it.
  await database.owner.begin(async (tx) => {
    await cancelJob(tx, projectId, id);
    await wake(tx, topics.cancels);
  });
  await becomes(id, { status: "cancelled" });
});

test("what a job made is settled though every connection fails meanwhile", async () => {
  const begun = Promise.withResolvers<void>();
  const go = Promise.withResolvers<void>();
  run(async () => {
    begun.resolve();
    await go.promise;
    return { made: true };
  });
  const id = await queue();
  await begun.promise;
  const path = `${database.socketDir}/.s.PGSQL.5432`;
  const admin = postgres({ path, username: "postgres", database: "postgres", max: 1 });
  const terminate = () => admin`
    select pg_terminate_backend(pid) from pg_stat_activity where datname = ${database.name} and pid <> pg_backend_pid()`;
  // No new connection either, for as long as the database says so.
  await admin.unsafe(`alter database ${database.name} with allow_connections false`);
  await terminate();
  go.resolve();
  await terminate();
  await admin.unsafe(`alter database ${database.name} with allow_connections true`);
  await becomes(id, { status: "succeeded", result: { made: true }, attempt: 1, lost: 0 });
  await admin.end();
});

test("what an attempt leaves for afterwards comes once its end is settled, well or not, and before its runner stops", async () => {
  for (const status of ["succeeded", "failed"]) {
    const seen: unknown[] = [];
    const gone = Promise.withResolvers<void>();
    const runner = run(async (_job, _services, _signal, afterwards) => {
      afterwards(async () => {
        seen.push((await row(id))?.["status"]);
        await gone.promise;
        seen.push("gone");
        throw new Error("told to the log");
      });
      await Promise.resolve();
      if (status === "failed") throw new BerthError("step_failed", "no");
      return {};
    });
    const id = await queue();
    await expect.poll(() => seen).toEqual([status]);
    expect(runner.idle).toBe(false);
    const stopped = runner.stop().then(() => seen.push("stopped"));
    gone.resolve();
    await stopped;
    expect(seen).toEqual([status, "gone", "stopped"]);
  }
});
