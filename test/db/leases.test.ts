import postgres from "postgres";
import { afterAll, afterEach, beforeAll, describe, expect, inject, it } from "vitest";
import { newId } from "../../src/core/ids.ts";
import type { JobKind, JobOutcome } from "../../src/core/job.ts";
import { driverOptions } from "../../src/db/client.ts";
import { drizzle } from "../../src/db/drizzle.ts";
import { type ClaimedJob, claimJobs, extendLeases, reportProgress, settleJobs, takeLost } from "../../src/db/leases.ts";
import * as schema from "../../src/db/schema.ts";
import type { Pool } from "../../src/db/scope.ts";
import { openHost } from "../support/host.ts";
import { createDatabase, type TestDatabase } from "../support/postgres.ts";

const error = { code: "unavailable" as const, message: "gone" };
const retry: JobOutcome = { status: "retry", error, afterMs: 0 };

describe("leases", () => {
  let database: TestDatabase;
  let sql: Pool;
  let hostId: string;

  beforeAll(async () => {
    database = await createDatabase(inject("postgresSocketDir"));
    sql = database.owner;
    hostId = (await openHost(drizzle(sql, { schema }))).id;
  });
  afterEach(async () => {
    await sql`delete from jobs`;
  });
  afterAll(() => database.drop());

  const project = async (maxRunning = 2): Promise<string> => {
    const id = newId("project");
    await sql`insert into projects (id, name, max_running_builds) values (${id}, ${id.slice(4)}, ${maxRunning})`;
    return id;
  };
  const queue = async (projectId: string, kind: JobKind = "build", payload = "{}"): Promise<string> => {
    const id = newId("job");
    await sql`insert into jobs (id, project_id, kind, payload) values (${id}, ${projectId}, ${kind}, ${payload}::text::jsonb)`;
    return id;
  };
  const claim = (builds = 1, suspect = true, host = hostId) =>
    claimJobs(sql, host, { kinds: { build: builds }, suspect });
  const claimOne = async (): Promise<ClaimedJob> => {
    const [job] = await claim();
    if (job === undefined) throw new Error("nothing to claim");
    return job;
  };
  const settle = async (job: ClaimedJob, outcome: JobOutcome) =>
    (await settleJobs(sql, [{ job, outcome }])).has(job.id);
  const runsOut = (id: string) => sql`update jobs set lease_until = now() - interval '1 second' where id = ${id}`;
  const take = async (held: readonly string[] = []): Promise<ClaimedJob[]> =>
    takeLost(sql, hostId, { held, own: false });
  const row = async (id: string) =>
    (await sql`select status, attempt, epoch::int, error, result, payload, lost from jobs where id = ${id}`)[0];

  it("gives each job to one claimer and counts the attempt", async () => {
    const ids = [await queue(await project(10)), await queue(await project(10)), await queue(await project(10))];
    const claims = (await Promise.all([1, 2, 3, 4, 5].map(() => claim()))).flat();
    expect(claims.map((job) => job.id).sort()).toEqual(ids.sort());
    expect(await row(ids[0] ?? "")).toMatchObject({ status: "running", attempt: 1, epoch: 1 });
  });

  it("holds a project to its limit, in one claim and when hosts claim at once", async () => {
    const busy = await project(2);
    for (let i = 0; i < 5; i++) await queue(busy);
    expect(await claim(4)).toHaveLength(2);
    expect(await claim(4)).toEqual([]);
    await sql`update jobs set status = 'queued'`;
    const claims = await Promise.all([1, 2, 3, 4].map(() => claim(4)));
    expect(claims.flat()).toHaveLength(2);
  });

  it("takes the projects' turns: who has least running comes first, however long the others have waited", async () => {
    const [busy, quiet] = [await project(4), await project(4)];
    for (let i = 0; i < 6; i++) await queue(busy);
    expect((await claim(2)).map((job) => job.projectId)).toEqual([busy, busy]);
    const others = [await queue(quiet), await queue(quiet)];
    const next = await claim(3);
    expect(next.map((job) => job.projectId).sort()).toEqual([busy, quiet, quiet].sort());
    expect(next.map((job) => job.id)).toEqual(expect.arrayContaining(others));
  });

  it("has room for each kind by itself", async () => {
    const [one, other] = [await project(10), await project(10)];
    for (let i = 0; i < 6; i++) await queue(one, "build");
    for (let i = 0; i < 6; i++) await queue(one, "pull");
    await queue(other, "pull");
    const left = { build: 2, pull: 6 };
    const kinds: JobKind[] = [];
    for (let claimed: ClaimedJob[]; ; kinds.push(...claimed.map((job) => job.kind))) {
      claimed = await claimJobs(sql, hostId, { kinds: left, suspect: true });
      if (claimed.length === 0) break;
      left.build -= claimed.filter((job) => job.kind === "build").length;
      left.pull -= claimed.filter((job) => job.kind === "pull").length;
    }
    expect(kinds.filter((kind) => kind === "build")).toHaveLength(2);
    // A project pulls four at a time; the other's is the fifth.
    expect(kinds.filter((kind) => kind === "pull")).toHaveLength(5);
    expect(await claimJobs(sql, hostId, { kinds: { push: 6 }, suspect: true })).toEqual([]);
  });

  it("leaves alone what is not due, and what waits for another job's end", async () => {
    const projectId = await project(5);
    const [first, second, third] = [await queue(projectId), await queue(projectId), await queue(projectId)];
    await sql`update jobs set run_at = now() + interval '1 hour' where id = ${second}`;
    await sql`update jobs set after_job_id = ${first} where id = ${third}`;
    const [claimed, ...rest] = await claim(5);
    expect(rest).toEqual([]);
    expect(claimed?.id).toBe(first);
    if (claimed !== undefined) await settle(claimed, { status: "cancelled" });
    expect((await claim(5)).map((job) => job.id)).toEqual([third]);
  });

  it("writes nothing with a stale epoch", async () => {
    const id = await queue(await project());
    const first = await claimOne();
    await runsOut(id);
    const [taken] = await take();
    if (taken === undefined) throw new Error("not taken over");
    expect(await settle(first, { status: "succeeded", result: { from: "stale" } })).toBe(false);
    expect(await reportProgress(sql, first, { from: "stale" })).toBe(false);
    expect(await extendLeases(sql, [first])).toEqual(new Map());
    expect(await settle(taken, retry)).toBe(true);
    expect(await row(id)).toMatchObject({ status: "queued", result: null });
    const again = await claimOne();
    expect(again.attempt).toBe(2);
    expect(await settle(again, { status: "succeeded", result: { from: "second" } })).toBe(true);
    expect(await settle(again, { status: "failed", error })).toBe(false);
    expect(await row(id)).toMatchObject({ status: "succeeded", result: { from: "second" }, error: null });
  });

  it("settles many at once, each as it ended, and tells of each end once", async () => {
    const projectId = await project(10);
    const [a, b, c, d] = [
      await queue(projectId),
      await queue(projectId, "build", '{"reference": "x", "auth": "sealed"}'),
      await queue(projectId),
      await queue(projectId),
    ];
    const claimed = new Map((await claim(4)).map((job) => [job.id, job]));
    const attempt = (id: string, outcome: JobOutcome) => ({ job: claimed.get(id) as ClaimedJob, outcome });
    const stale = { ...attempt(d, { status: "cancelled" }), job: { ...(claimed.get(d) as ClaimedJob), epoch: 7 } };
    const settled = await settleJobs(sql, [
      attempt(a, { status: "succeeded", result: { n: 1 } }),
      attempt(b, { status: "failed", error }),
      attempt(c, retry),
      stale,
    ]);
    expect(settled).toEqual(new Set([a, b, c]));
    expect(await row(a)).toMatchObject({ status: "succeeded", result: { n: 1 } });
    expect(await row(b)).toMatchObject({ status: "failed", error, payload: { reference: "x" } });
    expect(await row(c)).toMatchObject({ status: "queued", error, attempt: 1 });
    expect(await row(d)).toMatchObject({ status: "running" });
    const told =
      await sql`select type, subject_id "of", data from events where project_id = ${projectId} order by type`;
    expect([...told]).toEqual([
      { type: "build.failed", of: b, data: { error } },
      { type: "build.succeeded", of: a, data: {} },
    ]);
  });

  it("settles and extends at once without either having to give way", async () => {
    const projectId = await project(200);
    for (let round = 0; round < 5; round++) {
      await sql`
        insert into jobs (id, project_id, kind, payload)
        select 'job_' || gen_random_uuid(), ${projectId}, 'build', '{}' from generate_series(1, 100)`;
      const claimed = await claim(100);
      const shuffled = () => claimed.toSorted(() => Math.random() - 0.5);
      const outcome: JobOutcome = { status: "succeeded", result: {} };
      const [settled] = await Promise.all([
        settleJobs(
          sql,
          shuffled().map((job) => ({ job, outcome })),
        ),
        ...[1, 2, 3].map(() => extendLeases(sql, shuffled())),
      ]);
      expect(settled.size).toBe(claimed.length);
    }
  });

  it("tells a held job that its cancelling was asked", async () => {
    const id = await queue(await project());
    const claimed = await claim();
    await sql`update jobs set cancel_requested = true where id = ${id}`;
    expect(await extendLeases(sql, claimed)).toEqual(new Map([[id, { cancelRequested: true }]]));
  });

  it("does not try again what is to end, whoever had it; credentials go with the job", async () => {
    const id = await queue(await project(), "build", '{"reference": "x", "auth": "sealed"}');
    expect(await settle(await claimOne(), retry)).toBe(true);
    expect(await row(id)).toMatchObject({ payload: { reference: "x", auth: "sealed" } });
    await claimOne();
    await sql`update jobs set cancel_requested = true where id = ${id}`;
    await runsOut(id);
    const [taken] = await take();
    if (taken === undefined) throw new Error("not taken over");
    expect(await settle(taken, retry)).toBe(true);
    expect(await row(id)).toMatchObject({ status: "cancelled", error: null, payload: { reference: "x" } });
  });

  it("counts no attempt that a stopped worker gives back", async () => {
    const id = await queue(await project());
    expect(await settle(await claimOne(), { status: "retry", error, afterMs: 0, uncounted: true })).toBe(true);
    expect(await row(id)).toMatchObject({ status: "queued", attempt: 0 });
  });

  it("takes over what its worker left, at once when that was this host's, and never what is held", async () => {
    const [other] = await sql<{ id: string }[]>`
      insert into hosts (id, name, address, agent_url, cpus, memory, disk, port_first, port_last)
      values (${newId("host")}, ${newId("host")}, '', '', 1, 1, 1, 1, 2) returning id`;
    const projectId = await project(9);
    const [mine, theirs, held] = [await queue(projectId), await queue(projectId), await queue(projectId)];
    await claim(3);
    await sql`update jobs set host_id = ${other?.id ?? ""} where id = ${theirs}`;
    await runsOut(held);
    expect(await takeLost(sql, hostId, { held: [held], own: false })).toEqual([]);
    const own = await takeLost(sql, hostId, { held: [held], own: true });
    expect(own.map((job) => job.id)).toEqual([mine]);
    await runsOut(theirs);
    expect((await take([held])).map((job) => job.id)).toEqual([theirs]);
  });

  it("runs one suspect at a time, beside jobs that have lost no worker", async () => {
    const projectId = await project(9);
    const [first, second, third] = [await queue(projectId), await queue(projectId), await queue(projectId)];
    await sql`update jobs set lost = 1 where id in (${first}, ${second})`;
    expect((await claim(9)).map((job) => job.id).sort()).toEqual([first, third].sort());
    const fresh = await queue(projectId);
    expect((await claim(9, false)).map((job) => job.id)).toEqual([fresh]);
    expect((await claim(9)).map((job) => job.id)).toEqual([second]);
  });

  it("looks at the heads of lanes, however many jobs are queued behind them or have ended", async () => {
    const projects = await Promise.all(Array.from({ length: 20 }, () => project(2)));
    await sql`
      insert into jobs (id, project_id, kind, payload, status)
      select 'job_' || p || n, p, 'build', '{}', case when n > 200 then 'succeeded' else 'queued' end
      from unnest(${projects}::text[]) p, generate_series(1, 1000) n`;
    await sql`analyze jobs`;
    // One connection, whose counters are its own until it writes them.
    const path = `${database.socketDir}/.s.PGSQL.5432`;
    const alone = postgres({ path, username: "postgres", database: database.name, max: 1, ...driverOptions });
    const rowsScanned = async () => {
      await alone`select pg_stat_force_next_flush()`;
      const [row] = await alone<{ n: number }[]>`
        select seq_tup_read::int n from pg_stat_user_tables where relname = 'jobs'`;
      return row?.n;
    };
    const before = await rowsScanned();
    for (let i = 0; i < 10; i++)
      expect(await claimJobs(alone, hostId, { kinds: { build: 2 }, suspect: true })).toHaveLength(2);
    expect(await rowsScanned()).toBe(before);
    await alone.end();
  });

  it("fences an older session of the host", async () => {
    const first = await openHost(drizzle(sql, { schema }));
    const second = await openHost(drizzle(sql, { schema }), { bootId: "boot-2" });
    expect(second).toMatchObject({ id: first.id, session: first.session + 1, rebooted: true });
  });
});
