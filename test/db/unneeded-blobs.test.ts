import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";
import type postgres from "postgres";
import { afterAll, beforeAll, beforeEach, expect, inject, test } from "vitest";
import { newId } from "../../src/core/ids.ts";
import { claimBlob, dueBlobs, neededBlobs, recordUnneeded, removeUnneeded } from "../../src/db/unneeded-blobs.ts";
import { collectBlobs } from "../../src/image/collect-blobs.ts";
import { digestOf } from "../../src/image/digest.ts";
import { FileBlobs } from "../../src/image/file-blobs.ts";
import { gather } from "../support/image.ts";
import { createDatabase, type TestDatabase } from "../support/postgres.ts";

let database: TestDatabase;
/** As the API: collecting has to work under row-level security. */
let sql: postgres.Sql;
let directory: string;
let store: FileBlobs;
const projectId = newId("project");

beforeAll(async () => {
  database = await createDatabase(inject("postgresSocketDir"));
  sql = database.api;
  await database.owner`insert into projects (id, name) values (${projectId}, 'acme')`;
});
afterAll(() => database.drop());
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "berth-unneeded-"));
  store = new FileBlobs(directory, (digest) => claimBlob(sql, digest));
  await database.owner`delete from unneeded_blobs`;
  await database.owner`delete from jobs`;
  return () => rm(directory, { recursive: true, force: true });
});

async function put(text: string): Promise<string> {
  return (await store.put(Readable.from([Buffer.from(text)]), { maxBytes: 1e6 })).digest;
}

const collect = () =>
  collectBlobs(store, {
    due: () => dueBlobs(sql),
    needed: () => neededBlobs(sql),
    recordUnneeded: (digests) => recordUnneeded(sql, digests),
    removeUnneeded: (blob, remove) => removeUnneeded(sql, blob, remove),
  });

/** Lets so many hours pass for what is recorded as unneeded. */
async function later(hours: number): Promise<void> {
  await database.owner`update unneeded_blobs set since = since - make_interval(secs => ${hours * 3600})`;
}

/** Until so many wait for another's row: the database says so. */
async function waitFor(waiting: number): Promise<void> {
  await expect
    .poll(async () => {
      const [row] = await database.owner<{ n: number }[]>`
        select count(*)::int n from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()`;
      return row?.n;
    })
    .toBe(waiting);
}

/** The record of the one blob that is due. */
async function dueBlob() {
  const [due] = await dueBlobs(sql);
  if (due === undefined) throw new Error("no blob is due");
  return due;
}

async function job(startedHoursAgo: number): Promise<void> {
  await database.owner`insert into jobs (id, project_id, kind, payload, status, started_at)
    values (${newId("job")}, ${projectId}, 'pull', '{}', 'running', now() - make_interval(hours => ${startedHoursAgo}))`;
}

test("what rows of any project need stays, the rest goes an hour after it was seen to be unneeded", async () => {
  const names = ["layer", "config", "manifest", "cached", "context", "old context", "unneeded"];
  const [layer, config, manifest, cached, context, oldContext, unneeded] = await Promise.all(names.map(put));
  const { owner } = database;
  const json = (value: unknown) => JSON.stringify(value);
  await owner`insert into images (project_id, digest, media_type, manifest, config, layers, size_bytes)
    values (${projectId}, ${manifest ?? ""}, 'm', ${json({ config: { digest: config } })}::text::jsonb, '{}',
      ${json([{ digest: layer }])}::text::jsonb, 10)`;
  await owner`insert into build_cache (project_id, key, result)
    values (${projectId}, 'k', ${json({ layer: { digest: cached } })}::text::jsonb)`;
  for (const [digest, status] of [
    [context, "queued"],
    [oldContext, "succeeded"],
  ]) {
    const jobId = newId("job");
    await owner`insert into jobs (id, project_id, kind, payload) values (${jobId}, ${projectId}, 'build', '{}')`;
    await owner`insert into builds (id, project_id, job_id, status, request)
      values (${newId("build")}, ${projectId}, ${jobId}, ${status ?? ""},
        ${json({ source: { kind: "archive", digest } })}::text::jsonb)`;
  }
  const all = (await gather(store.list())).sort();
  expect(await collect()).toBe(0);
  await later(0.9);
  expect(await collect()).toBe(0);
  expect((await gather(store.list())).sort()).toEqual(all);
  await later(0.2);
  expect(await collect()).toBe(2);
  const kept = all.filter((digest) => digest !== oldContext && digest !== unneeded);
  expect((await gather(store.list())).sort()).toEqual(kept);
  expect([...(await sql`select digest from unneeded_blobs`)]).toEqual([]);
});

test("a job keeps what was unneeded when it began, and an older one does not keep what was unneeded before it", async () => {
  const before = await put("before");
  await collect();
  await later(5);
  await job(4);
  const during = await put("during");
  await collect();
  expect(await store.size(before)).toBeNull();
  expect(await gather(store.list())).toEqual([during]);
  await later(3);
  expect(await collect()).toBe(0);
  await database.owner`update jobs set status = 'succeeded', finished_at = now()`;
  expect(await collect()).toBe(1);
});

test("who finds a blob, or stores it again, can count on it from then on", async () => {
  const digest = await put("found");
  await collect();
  await later(5);
  expect(await store.size(digest)).toBe(5);
  expect(await collect()).toBe(0);
  await later(5);
  await put("found");
  expect(await collect()).toBe(0);
  await later(5);
  // Found without a claim, it can't be counted on.
  expect(await new FileBlobs(directory).size(digest)).toBe(5);
  expect(await collect()).toBe(1);
});

test("who finds a blob while it is being removed waits, and then does not find it", async () => {
  const digest = await put("race");
  await collect();
  await later(5);
  const { promise: removing, resolve: begun } = Promise.withResolvers<void>();
  const { promise: released, resolve: release } = Promise.withResolvers<void>();
  const removed = removeUnneeded(sql, await dueBlob(), async () => {
    begun();
    await released;
    await store.delete(digest);
  });
  await removing;
  let found: number | null | undefined;
  const asked = store.size(digest).then((size) => {
    found = size;
  });
  const stored = put("race");
  await waitFor(2);
  expect(found).toBeUndefined();
  release();
  expect(await removed).toBe(true);
  await asked;
  expect(found === null || found === 4).toBe(true);
  await stored;
  // What was stored meanwhile came after the removal, and stays.
  expect(await store.size(digest)).toBe(4);
  expect(await collect()).toBe(0);
  expect(await gather(store.list())).toEqual([digest]);
});

test("a blob that was claimed since it was found to be due is not removed", async () => {
  const digest = await put("claimed");
  await collect();
  await later(5);
  const due = await dueBlob();
  await claimBlob(sql, digest);
  expect(await removeUnneeded(sql, due, () => store.delete(digest))).toBe(false);
  expect(await store.size(digest)).toBe(7);
});

test("nor when another, that knew of no need yet, has recorded it once more", async () => {
  const digest = await put("claimed");
  await collect();
  await later(5);
  const due = await dueBlob();
  await claimBlob(sql, digest);
  await recordUnneeded(sql, [digest]);
  await later(5);
  expect(await removeUnneeded(sql, due, () => store.delete(digest))).toBe(false);
  expect(await removeUnneeded(sql, await dueBlob(), () => store.delete(digest))).toBe(true);
});

test("a record is younger than what was claimed before it, however long its transaction has lasted", async () => {
  const digest = await put("claimed");
  await collect();
  // Holds the record up: it waits to delete one of a blob that is gone.
  const gone = `sha256:${"0".repeat(64)}`;
  await recordUnneeded(sql, [digest, gone]);
  const { promise: held, resolve: hold } = Promise.withResolvers<void>();
  const { promise: claimed, resolve: release } = Promise.withResolvers<void>();
  const holder = database.owner.begin(async (tx) => {
    await tx`select 1 from unneeded_blobs where digest = ${gone} for update`;
    hold();
    await claimed;
  });
  await held;
  const recorded = recordUnneeded(sql, [digest]);
  await waitFor(1);
  await job(0);
  await claimBlob(sql, digest);
  release();
  await Promise.all([holder, recorded]);
  const [row] = await database.owner<{ younger: boolean }[]>`
    select since > (select started_at from jobs) as younger from unneeded_blobs where digest = ${digest}`;
  expect(row).toEqual({ younger: true });
});

test("nor is one older that had to wait for another's record", async () => {
  const digest = await put("claimed");
  const { promise: held, resolve: hold } = Promise.withResolvers<void>();
  const { promise: given, reject: giveUp } = Promise.withResolvers<never>();
  const holder = database.owner
    .begin(async (tx) => {
      await tx`insert into unneeded_blobs (digest) values (${digest})`;
      hold();
      await given;
    })
    .catch((error: unknown) => error);
  await held;
  const recorded = recordUnneeded(sql, [digest]);
  await waitFor(1);
  await job(0);
  await claimBlob(sql, digest);
  giveUp(new Error("given up"));
  await Promise.all([holder, recorded]);
  const [row] = await database.owner<{ younger: boolean }[]>`
    select since > (select started_at from jobs) as younger from unneeded_blobs where digest = ${digest}`;
  expect(row).toEqual({ younger: true });
});

test("a record that has no time yet is not due, and who claims the blob takes it away", async () => {
  const digest = await put("claimed");
  await database.owner`insert into unneeded_blobs (digest, since) values (${digest}, 'infinity')`;
  expect(await dueBlobs(sql)).toEqual([]);
  await claimBlob(sql, digest);
  expect(await sql`select from unneeded_blobs`).toHaveLength(0);
  // One that was left so gets its time with the next record.
  await database.owner`insert into unneeded_blobs (digest, since) values (${digest}, 'infinity')`;
  await recordUnneeded(sql, [digest]);
  await later(2);
  expect(await dueBlobs(sql)).toHaveLength(1);
});

test("many collect at once", async () => {
  const digests = await Promise.all(Array.from({ length: 50 }, (_, n) => put(`many ${n}`)));
  await collect();
  await later(5);
  const removed = await Promise.all([collect(), collect(), collect()]);
  expect(removed.reduce((sum, n) => sum + n, 0)).toBe(digests.length);
  expect(await gather(store.list())).toEqual([]);
});

test("a failing store keeps the record, so that the next round tries again", async () => {
  await put("stuck");
  await collect();
  await later(5);
  const stuck = removeUnneeded(sql, await dueBlob(), () => Promise.reject(new Error("the bucket is away")));
  await expect(stuck).rejects.toThrow("the bucket is away");
  expect(await collect()).toBe(1);
  expect(await gather(store.list())).toEqual([]);
});

/** What was recorded and was not there; what jobs found; what was collected. */
interface Raced {
  lost: number;
  found: number;
  removed: number;
}

/** Jobs and collecting at once, 40 rounds and until it is enough. */
async function race(enough: (raced: Raced) => boolean): Promise<Raced> {
  const { owner } = database;
  // Without the hour only the open jobs protect what they count on.
  await owner`create or replace function berth_unneeded_before() returns timestamptz
    language sql stable security definer set search_path = public
    as $$ select least(clock_timestamp(), min(started_at)) from jobs where finished_at is null $$`;
  let working = true;
  const raced: Raced = { lost: 0, found: 0, removed: 0 };
  const collector = async () => {
    while (working) {
      const removed = await collect();
      raced.removed += removed;
    }
  };
  /** Jobs of few contents, which find what others have left, record it, and let it go again. */
  const worker = async (name: number) => {
    for (let round = 0; round < 40 || !enough(raced); round++) {
      const id = newId("job");
      await owner`insert into jobs (id, project_id, kind, payload, status, started_at)
        values (${id}, ${projectId}, 'pull', '{}', 'running', clock_timestamp())`;
      const text = `content ${(name + round * 7) % 5}`;
      const digest = digestOf(Buffer.from(text));
      if ((await store.size(digest)) === null) await store.put(Readable.from([Buffer.from(text)]), { maxBytes: 99 });
      else raced.found++;
      await sleep(Math.random() * 5);
      await owner`insert into images (project_id, digest, media_type, manifest, config, layers, size_bytes)
        values (${projectId}, ${id}, 'm', '{}', '{}', ${JSON.stringify([{ digest }])}::text::jsonb, 10)`;
      await owner`update jobs set status = 'succeeded', finished_at = clock_timestamp() where id = ${id}`;
      await sleep(Math.random() * 5);
      if ((await readdir(join(directory, "sha256"))).includes(digest.slice(7))) {
        await owner`delete from images where digest = ${id}`;
      } else raced.lost++;
    }
  };
  const collectors = [collector(), collector()];
  await Promise.all([0, 1, 2].map(worker));
  working = false;
  await Promise.all(collectors);
  return raced;
}

test("whatever jobs and collecting do at once, what is recorded is there", async () => {
  // Both happen, and often.
  const { lost } = await race(({ found, removed }) => found > 10 && removed > 10);
  expect(lost).toBe(0);
}, 60_000);
