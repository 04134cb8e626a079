import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { newId } from "../../src/core/ids.ts";
import { parseReference } from "../../src/core/reference.ts";
import {
  findCachedStep,
  keepCachedStep,
  type LogRow,
  recordBuiltImage,
  recordFetched,
  recordWarnings,
  reportBuild,
} from "../../src/db/build-runs.ts";
import type { Connection, Db } from "../../src/db/connect.ts";
import { drizzle } from "../../src/db/drizzle.ts";
import { type ClaimedJob, claimJobs } from "../../src/db/leases.ts";
import * as schema from "../../src/db/schema.ts";
import { neededBlobs } from "../../src/db/unneeded-blobs.ts";
import { openHost } from "../support/host.ts";
import { createDatabase, type TestDatabase } from "../support/postgres.ts";

let database: TestDatabase;
let worker: Connection;
let db: Db;
let hostId = "";
const projectId = newId("project");
const buildId = newId("build");
const layer = { digest: `sha256:${"1".repeat(64)}`, diffId: `sha256:${"2".repeat(64)}`, sizeBytes: 10, mediaType: "x" };

beforeAll(async () => {
  database = await createDatabase(inject("postgresSocketDir"));
  hostId = (await openHost(drizzle(database.owner, { schema }))).id;
  worker = await database.asHost(hostId);
  ({ db } = worker);
  await database.owner`insert into projects (id, name) values (${projectId}, 'p')`;
});
afterAll(() => database.drop());

async function claim(): Promise<ClaimedJob> {
  const [job] = await claimJobs(worker.sql, hostId, { kinds: { build: 1 }, suspect: true });
  if (job === undefined) throw new Error("nothing to claim");
  return job;
}

const lines = (first: number, ...texts: string[]): LogRow[] =>
  texts.map((text, index) => ({ seq: first + index, step: 1, stream: "stdout", text, at: new Date() }));
const steps = [
  { index: 1, stage: "a", instruction: "RUN x", line: 2, status: "running" as const, cached: false, durationMs: null },
];

test("a build's log, steps and image are written by who holds its lease, and by nobody else", async () => {
  const jobId = newId("job");
  await database.owner`insert into jobs (id, project_id, kind, subject_id, payload)
    values (${jobId}, ${projectId}, 'build', ${buildId}, '{}')`;
  await database.owner`insert into builds (id, project_id, job_id, request)
    values (${buildId}, ${projectId}, ${jobId}, ${JSON.stringify({ tags: ["web:1"] })}::jsonb)`;
  const job = await claim();
  expect(job.build).toEqual({ id: buildId, request: { tags: ["web:1"] }, nextSeq: 1 });
  const begun = async () =>
    (await database.owner`select berth_begun_build(${jobId}) as build`)[0]?.["build"] as unknown;

  expect(await reportBuild(db, job, buildId, lines(1, "a", "b'\\\"{}"), steps)).toBe(true);
  expect(await reportBuild(db, job, buildId, lines(3, "c"), null)).toBe(true);
  expect(await reportBuild(db, job, buildId, [], steps)).toBe(true);
  const stale = { ...job, epoch: job.epoch - 1 };
  expect(await reportBuild(db, stale, buildId, lines(4, "late"), [])).toBe(false);
  const log = await database.owner`select seq::int, text from build_logs where build_id = ${buildId} order by seq`;
  expect([...log]).toEqual([
    { seq: 1, text: "a" },
    { seq: 2, text: "b'\\\"{}" },
    { seq: 3, text: "c" },
  ]);
  expect((await database.owner`select steps from builds where id = ${buildId}`)[0]).toEqual({ steps });
  // A later attempt goes on with the numbers.
  expect(await begun()).toMatchObject({ nextSeq: 4 });

  const warnings = [{ check: "StageNameCasing", message: "stage names are lower case: a", line: 1 }];
  expect(await recordWarnings(db, stale, buildId, [])).toBe(false);
  expect(await recordWarnings(db, job, buildId, warnings)).toBe(true);
  expect((await database.owner`select warnings from builds where id = ${buildId}`)[0]).toEqual({ warnings });

  const context = `sha256:${"4".repeat(64)}`;
  const git = { url: "https://git.example/x.git", ref: null, subdirectory: null };
  const source = { kind: "git" as const, ...git, commit: "5".repeat(40), digest: context, sizeBytes: 1024 };
  expect(await recordFetched(db, stale, buildId, source)).toBe(false);
  expect(await recordFetched(db, job, buildId, source)).toBe(true);
  expect(await begun()).toMatchObject({ request: { tags: ["web:1"], source } });
  // The tar is needed for as long as the build may read it.
  await database.owner`update builds set status = 'running' where id = ${buildId}`;
  expect(await neededBlobs(database.owner)).toContain(context);

  const digest = `sha256:${"3".repeat(64)}`;
  const image = {
    digest,
    mediaType: "application/vnd.oci.image.manifest.v1+json",
    manifest: {},
    config: { architecture: "amd64", os: "linux", rootfs: { type: "layers" as const, diff_ids: [] } },
    layers: [layer],
    sizeBytes: 10,
  };
  const reference = parseReference("web:1");
  expect(await recordBuiltImage(db, stale, buildId, image, [reference])).toBe(false);
  expect(await database.owner`select * from images`).toHaveLength(0);
  expect(await recordBuiltImage(db, job, buildId, image, [reference])).toBe(true);
  expect([...(await database.owner`select repository, tag, digest from tags`)]).toEqual([
    { repository: "web", tag: "1", digest },
  ]);
  expect((await database.owner`select image_digest from builds`)[0]).toEqual({ image_digest: digest });
});

test("a step's result is found by its key in its own project, the latest one", async () => {
  const result = { layer, created: "2026-01-02T00:00:00Z" };
  const jobId = newId("job");
  await database.owner`insert into jobs (id, project_id, kind, payload) values (${jobId}, ${projectId}, 'build', '{}')`;
  const job = await claim();
  expect(await findCachedStep(db, projectId, "k")).toBeNull();
  await keepCachedStep(db, job, "k", { layer: null, created: "2026-01-01T00:00:00Z" });
  await keepCachedStep(db, job, "k", result);
  await keepCachedStep(db, { ...job, epoch: job.epoch - 1 }, "k", { layer: null, created: "2026-01-03T00:00:00Z" });
  expect(await findCachedStep(db, projectId, "k")).toEqual(result);
  expect(await findCachedStep(db, newId("project"), "k")).toBeNull();
});

test("builds that move the same names at once, in any order, don't wait for each other in a circle", async () => {
  const names = Array.from({ length: 32 }, (_, n) => parseReference(`app${String(n)}:1`));
  const record = (fill: string) => ({
    digest: `sha256:${fill.repeat(64)}`,
    mediaType: "m",
    manifest: {},
    config: {} as never,
    layers: [],
    sizeBytes: 0,
  });
  await database.owner`update jobs set status = 'succeeded', finished_at = now()`;
  const moves: (() => Promise<void>)[] = [];
  for (const [index, order] of [names, names.slice(2, 12).toReversed()].entries()) {
    const [jobId, id] = [newId("job"), newId("build")];
    await database.owner`insert into jobs (id, project_id, kind, subject_id, payload)
      values (${jobId}, ${projectId}, 'build', ${id}, '{}')`;
    await database.owner`insert into builds (id, project_id, job_id, request) values (${id}, ${projectId}, ${jobId}, '{}')`;
    const job = await claim();
    moves.push(async () => {
      const image = record(String(index + 5));
      for (let round = 0; round < 40; round++) expect(await recordBuiltImage(db, job, id, image, order)).toBe(true);
    });
  }
  await Promise.all(moves.map((move) => move()));
});
