import { afterAll, beforeAll, beforeEach, describe, expect, inject, test } from "vitest";
import { newId } from "../../src/core/ids.ts";
import type { JobOutcome } from "../../src/core/job.ts";
import { seal } from "../../src/core/keys.ts";
import { sourceSealPurpose } from "../../src/core/source.ts";
import { recordDelivery } from "../../src/db/deliveries.ts";
import { drizzle } from "../../src/db/drizzle.ts";
import { type ClaimedJob, claimJobs, settleJobs, takeLost } from "../../src/db/leases.ts";
import * as schema from "../../src/db/schema.ts";
import { type Pool, transact } from "../../src/db/scope.ts";
import { recordRead } from "../../src/db/source-reads.ts";
import { deleteSource, insertSource, lockSource, updateSource } from "../../src/db/sources.ts";
import { openHost } from "../support/host.ts";
import { createDatabase, type TestDatabase } from "../support/postgres.ts";

const ref = "refs/heads/main";
const secretKey = "a secret key of the tests, long enough";
const projectId = newId("project");
const build = {
  ...{ dockerfile: "Dockerfile", args: {}, tags: [], labels: {}, noCache: false, pull: false },
  limits: { cpus: 1, memory: 1, timeoutSeconds: 1 },
};

let db: TestDatabase;
let worker: Pool;
let hostId: string;
let id: string;

beforeAll(async () => {
  db = await createDatabase(inject("postgresSocketDir"));
  hostId = (await openHost(drizzle(db.owner, { schema }))).id;
  worker = (await db.asHost(hostId)).sql;
  await db.owner`insert into projects (id, name) values (${projectId}, 'p')`;
});
afterAll(() => db.drop());

const fields = () => ({
  ...{ name: id.slice(4), url: "https://git.example/x.git", branches: [], subdirectory: null },
  ...{ build, deploy: null, authSealed: null, seals: { registryAuth: null, secrets: null } },
});
const asApi = { projectId };

beforeEach(async () => {
  await db.owner`delete from jobs`;
  id = newId("source");
  await transact(db.api, asApi, (tx) =>
    insertSource(tx, { ...fields(), id, projectId, provider: "generic", secretSealed: "s" }),
  );
});

const deliver = (key: string) =>
  transact(db.api, asApi, (tx) =>
    recordDelivery(tx, { id, projectId, secretKey }, { key, event: "push", about: { ref } }),
  );
const claim = () => claimJobs(worker, hostId, { kinds: { source: 2, build: 2 }, suspect: true });
const claimOne = async (): Promise<ClaimedJob> => {
  const [job] = await claim();
  if (job === undefined) throw new Error("nothing to claim");
  return job;
};
const settle = (job: ClaimedJob, outcome: JobOutcome = { status: "succeeded", result: {} }) =>
  settleJobs(worker, [{ job, outcome }]);
const read = (job: ClaimedJob, commit: string, url = "https://git.example/x.git") =>
  recordRead(worker, job, { url, commit, branch: "main", known: "known" });
const builds = () => db.owner<{ commit: string }[]>`
  select request->'source'->>'commit' as commit from builds where source_id = ${id} order by created_at`;
const statuses = async () => {
  const rows = await db.owner<{ status: string }[]>`
    select status from deliveries where source_id = ${id} order by received_at`;
  return rows.map(({ status }) => status);
};

describe("a ref that was read", () => {
  test("is built when it is at another commit; a build and the next read wait for their turn", async () => {
    await deliver("1");
    const first = await claimOne();
    expect(await read(first, "c1")).toMatchObject({ started: true });
    await deliver("2");
    // It waits for the one that reads, and then for what that builds.
    expect((await claim()).map((job) => job.kind)).toEqual(["build"]);
    await settle(first);
    expect(await claim()).toEqual([]);
    const [running] = await db.owner<{ id: string; epoch: number }[]>`
      select id, epoch::int from jobs where kind = 'build'`;
    await settle({ ...first, ...running, kind: "build", subjectId: null });
    const second = await claimOne();
    expect(await read(second, "c1")).toMatchObject({ started: false });
    expect(await statuses()).toEqual(["building", "ignored"]);
    expect(await builds()).toEqual([{ commit: "c1" }]);
  });

  test("is built once, when the attempt that read it is cut off behind its commit", async () => {
    await deliver("1");
    const job = await claimOne();
    await read(job, "c1");
    await db.owner`update jobs set lease_until = now() - interval '1 s' where id = ${job.id}`;
    const [lost] = await takeLost(worker, hostId, { held: [], own: false });
    if (lost === undefined) throw new Error("the job was not lost");
    await settle(lost, { status: "retry", error: { code: "unavailable", message: "gone" }, afterMs: 0 });
    const again = (await claim()).find(({ kind }) => kind === "source");
    expect(again?.id).toBe(job.id);
    // It is at another commit by now, which nobody has told of yet.
    expect(await read(again ?? job, "c2")).toMatchObject({ started: true });
    expect(await statuses()).toEqual(["building"]);
    expect(await builds()).toEqual([{ commit: "c1" }]);
  });

  test("changes nothing when the lease is lost, the source is gone, or another repository's by now", async () => {
    await deliver("1");
    const job = await claimOne();
    await expect(read({ ...job, epoch: job.epoch - 1 }, "c1")).rejects.toMatchObject({ code: "unavailable" });
    await transact(db.api, asApi, async (tx) => {
      const before = await lockSource(tx, asApi, id);
      if (before !== null) await updateSource(tx, before, { ...fields(), url: "https://other.example" });
    });
    await expect(read(job, "c1")).rejects.toMatchObject({ code: "unavailable", retryable: true });
    expect(await builds()).toEqual([]);
    expect(await read(job, "c1", "https://other.example")).toMatchObject({ started: true });
    await transact(db.api, asApi, (tx) => deleteSource(tx, projectId, id));
    await expect(read(job, "c2", "https://other.example")).rejects.toMatchObject({ code: "not_found" });
    await expect(deliver("2")).rejects.toMatchObject({ code: "not_found" });
  });
});

test("builds of another repository are not given the secrets of the one that was to be read", async () => {
  const secrets = seal(secretKey, sourceSealPurpose("secrets", id), '{"npm":"hunter2"}');
  const withSecrets = () => ({ ...fields(), seals: { registryAuth: null, secrets } });
  const change = (url: string) =>
    transact(db.api, asApi, async (tx) => {
      const before = await lockSource(tx, asApi, id);
      if (before !== null) await updateSource(tx, before, { ...withSecrets(), url });
    });
  const buildHasSecrets = async () => {
    const [row] = await db.owner`select payload ? 'secrets' as has from jobs where kind = 'build'`;
    return row?.["has"] as boolean;
  };
  await change("https://git.example/x.git");
  await deliver("1");
  const job = await claimOne();
  await change("https://git.example/other.git");
  expect(await read(job, "c1", "https://git.example/other.git")).toMatchObject({ started: true });
  expect(await buildHasSecrets()).toBe(false);
  // The same read, of the repository that they are for.
  await db.owner`delete from builds where source_id = ${id}`;
  await db.owner`delete from jobs where kind = 'build'`;
  await change("https://git.example/x.git");
  expect(await read(job, "c1")).toMatchObject({ started: true });
  expect(await buildHasSecrets()).toBe(true);
});

test("reads don't count among a project's open jobs: many that wait for room keep none of them from building", async () => {
  const open = (kind: string) => db.owner`
    insert into jobs (id, project_id, kind, payload, status, run_at)
    select ${kind} || n, ${projectId}, ${kind}, '{}', case when n % 2 = 0 then 'queued' else 'running' end, now() + interval '1 day'
    from generate_series(1, 200) n`;
  await deliver("1");
  const job = await claimOne();
  await open("source");
  await open("pull");
  await expect(read(job, "c1")).rejects.toMatchObject({ code: "quota_exceeded" });
  expect(await builds()).toEqual([]);
  expect(await statuses()).toEqual(["received"]);
  await db.owner`delete from jobs where id = 'pull1'`;
  expect(await read(job, "c1")).toMatchObject({ started: true });
  expect(await builds()).toEqual([{ commit: "c1" }]);
});

test("many deliveries at once keep to the last thousand, and none waits for another's rows for ever", async () => {
  await db.owner`
    insert into deliveries (id, source_id, project_id, delivery_key, event, status, received_at)
    select 'dlv_' || n || ${id}, ${id}, ${projectId}, n::text, 'push', 'ignored', now() - make_interval(secs => 2000 - n)
    from generate_series(1, 1100) n`;
  const numbers = Array.from({ length: 40 }, (_, n) => `new ${String(n)}`);
  await Promise.all(numbers.map(deliver));
  await deliver("one");
  const [row] = await db.owner<{ kept: number; fresh: number }[]>`
    select count(*)::int kept, count(*) filter (where delivery_key like 'new %')::int fresh
    from deliveries where source_id = ${id}`;
  expect(row?.fresh).toBe(40);
  expect(row?.kept).toBeLessThan(1141);
  for (let n = 0; n < 15; n++) await deliver(`later ${String(n)}`);
  const [last] = await db.owner<{ n: number }[]>`select count(*)::int n from deliveries where source_id = ${id}`;
  expect(last?.n).toBe(1000);
});

test.each([1, 2, 3])("whatever happens at once, the last commit is built last, and no commit twice (%i)", async () => {
  let head = 0;
  let told = 0;
  let quiet = false;
  const built: number[] = [];
  const tells = async () => {
    for (let n = 0; n < 25; n++) {
      if (Math.random() < 0.3) head++;
      // Some are sent twice, some at once with others.
      await Promise.all([deliver(String(told)), deliver(String(Math.random() < 0.3 ? told : `${String(told)}x`))]);
      told++;
    }
  };
  const attempt = async (job: ClaimedJob) => {
    if (job.kind === "build") {
      const [row] = await db.owner`select request->'source'->>'commit' as commit from builds where job_id = ${job.id}`;
      built.push(Number(row?.["commit"]));
      await settle(job);
      return;
    }
    const seen = head;
    await new Promise((resolve) => setImmediate(resolve));
    await read(job, String(seen));
    // Some attempts end before they are settled as done.
    const error = { code: "unavailable", message: "cut off" };
    await settle(job, Math.random() < 0.2 ? { status: "retry", error, afterMs: 0, uncounted: true } : undefined);
  };
  const works = async () => {
    while (!quiet) {
      const jobs = await claim();
      await Promise.all(jobs.map(attempt));
      const [row] = await db.owner`
        select count(*) filter (where j.kind = 'build' and j.status = 'running')::int as running,
          count(*) filter (where j.status in ('queued', 'running'))::int as open
        from jobs j left join builds b on b.job_id = j.id where coalesce(b.source_id, j.subject_id) = ${id}`;
      expect(row?.["running"]).toBeLessThanOrEqual(1);
      quiet = done && row?.["open"] === 0;
    }
  };
  let done = false;
  head = 1;
  await Promise.all([
    ...[works(), works()],
    Promise.all([tells(), tells()]).then(async () => {
      await deliver("last");
      done = true;
    }),
  ]);
  expect(built).toEqual(built.toSorted((a, b) => a - b));
  expect(new Set(built).size).toBe(built.length);
  expect(built.at(-1)).toBe(head);
  expect(new Set(await statuses())).toEqual(new Set(["building", "ignored"]));
});
