import { afterAll, beforeAll, describe, expect, inject, it } from "vitest";
import { newId } from "../../src/core/ids.ts";
import type { Db } from "../../src/db/connect.ts";
import { drizzle } from "../../src/db/drizzle.ts";
import { openHostSession } from "../../src/db/hosts-worker.ts";
import { claimJobs, extendLeases, settleJob, takeExpired } from "../../src/db/leases.ts";
import * as schema from "../../src/db/schema.ts";
import { createDatabase, type TestDatabase } from "../support/postgres.ts";

const registration = {
  name: "one",
  address: "127.0.0.1",
  agentUrl: "unix:/nowhere",
  bootId: "boot-1",
  cpus: 2,
  memory: 1e9,
  disk: 1e9,
  portFirst: 8000,
  portLast: 8010,
  reservedPorts: [],
};

describe("leases", () => {
  let database: TestDatabase;
  let db: Db;
  let hostId: string;

  beforeAll(async () => {
    database = await createDatabase(inject("postgresSocketDir"));
    db = drizzle(database.owner, { schema });
    hostId = (await openHostSession(db, registration)).id;
  });
  afterAll(() => database.drop());

  const project = async (maxRunning = 2): Promise<string> => {
    const id = newId("project");
    await database.owner`insert into projects (id, name, max_running_builds) values (${id}, ${id.slice(4)}, ${maxRunning})`;
    return id;
  };
  const queue = async (projectId: string): Promise<string> => {
    const id = newId("job");
    await database.owner`insert into jobs (id, project_id, kind, payload) values (${id}, ${projectId}, 'pull', '{}')`;
    return id;
  };
  const status = async (id: string) =>
    (await database.owner`select status, attempt, epoch::int, error, result from jobs where id = ${id}`)[0];
  const drain = async () => {
    await database.owner`delete from jobs`;
  };

  it("gives each job to one claimer and counts the attempt", async () => {
    const ids = [await queue(await project(10)), await queue(await project(10)), await queue(await project(10))];
    const claims = await Promise.all([1, 2, 3, 4, 5].map(() => claimJobs(db, hostId, 1)));
    expect(
      claims
        .flat()
        .map((job) => job.id)
        .sort(),
    ).toEqual(ids.sort());
    expect(await status(ids[0] ?? "")).toMatchObject({ status: "running", attempt: 1, epoch: 1 });
    await drain();
  });

  it("holds a project to its limit and serves the one that has less first", async () => {
    const [busy, quiet] = [await project(2), await project(2)];
    for (let i = 0; i < 4; i++) await queue(busy);
    expect(await claimJobs(db, hostId, 1)).toHaveLength(1);
    const other = await queue(quiet);
    expect((await claimJobs(db, hostId, 1))[0]?.id).toBe(other);
    const rest: string[] = [];
    for (let i = 0; i < 4; i++) rest.push(...(await claimJobs(db, hostId, 1)).map((job) => job.projectId));
    expect(rest).toEqual([busy]);
    await drain();
  });

  it("writes nothing with a stale epoch", async () => {
    const id = await queue(await project());
    const [first] = await claimJobs(db, hostId, 1);
    if (first === undefined) throw new Error("not claimed");
    await database.owner`update jobs set lease_until = now() - interval '1 second' where id = ${id}`;
    const [taken] = await takeExpired(db, hostId);
    if (taken === undefined) throw new Error("not taken over");
    expect(await settleJob(db, first, { status: "succeeded", result: { from: "stale" } })).toBe(false);
    expect(await extendLeases(db, [first])).toEqual(new Map());
    const error = { code: "unavailable", message: "gone" };
    expect(await settleJob(db, taken, { status: "retry", error, afterMs: 0 })).toBe(true);
    expect(await status(id)).toMatchObject({ status: "queued", result: null });
    const [again] = await claimJobs(db, hostId, 1);
    if (again === undefined) throw new Error("not claimed again");
    expect(again.attempt).toBe(2);
    expect(await settleJob(db, again, { status: "succeeded", result: { from: "second" } })).toBe(true);
    expect(await settleJob(db, again, { status: "failed", error })).toBe(false);
    expect(await status(id)).toMatchObject({ status: "succeeded", result: { from: "second" } });
  });

  it("tells a held job that its cancelling was asked", async () => {
    const id = await queue(await project());
    const claimed = await claimJobs(db, hostId, 1);
    await database.owner`update jobs set cancel_requested = true where id = ${id}`;
    expect(await extendLeases(db, claimed)).toEqual(new Map([[id, { cancelRequested: true }]]));
  });

  it("does not try again what is to end, whoever had it; credentials go with the job", async () => {
    const id = await queue(await project());
    await database.owner`update jobs set payload = '{"reference": "x", "auth": "sealed"}' where id = ${id}`;
    const [claimed] = await claimJobs(db, hostId, 1);
    if (claimed === undefined) throw new Error("not claimed");
    const retry = { status: "retry", error: { code: "unavailable", message: "gone" }, afterMs: 0 } as const;
    expect(await settleJob(db, claimed, retry)).toBe(true);
    const payload = async () =>
      (await database.owner`select payload from jobs where id = ${id}`)[0]?.payload as unknown;
    expect(await payload()).toEqual({ reference: "x", auth: "sealed" });
    await claimJobs(db, hostId, 1);
    await database.owner`
      update jobs set cancel_requested = true, lease_until = now() - interval '1 second' where id = ${id}`;
    const [taken] = await takeExpired(db, hostId);
    if (taken === undefined) throw new Error("not taken over");
    expect(await settleJob(db, taken, retry)).toBe(true);
    expect(await status(id)).toMatchObject({ status: "cancelled", error: null });
    expect(await payload()).toEqual({ reference: "x" });
    await drain();
  });

  it("counts no attempt that a stopped worker gives back", async () => {
    const id = await queue(await project());
    const [claimed] = await claimJobs(db, hostId, 1);
    if (claimed === undefined) throw new Error("not claimed");
    const error = { code: "unavailable", message: "stopping" };
    expect(await settleJob(db, claimed, { status: "retry", error, afterMs: 0, uncounted: true })).toBe(true);
    expect(await status(id)).toMatchObject({ status: "queued", attempt: 0 });
    await drain();
  });

  it("fences an older session of the host", async () => {
    const first = await openHostSession(db, registration);
    const second = await openHostSession(db, { ...registration, bootId: "boot-2" });
    expect(second).toMatchObject({ id: first.id, session: first.session + 1, rebooted: true });
  });
});
