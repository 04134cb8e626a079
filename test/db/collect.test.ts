import { mkdtemp, rm, utimes } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pino } from "pino";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { newId } from "../../src/core/ids.ts";
import type { Layer } from "../../src/core/image.ts";
import type { Connection } from "../../src/db/connect.ts";
import { drizzle } from "../../src/db/drizzle.ts";
import * as schema from "../../src/db/schema.ts";
import { collect } from "../../src/engine/upkeep/collect.ts";
import { FileBlobs } from "../../src/image/blobs.ts";
import { LayerStore } from "../../src/image/layers.ts";
import { entry, gather } from "../support/image.ts";
import { createDatabase, type TestDatabase } from "../support/postgres.ts";

let database: TestDatabase;
let directory: string;
let blobs: FileBlobs;
let layers: LayerStore;

beforeAll(async () => {
  database = await createDatabase(inject("postgresSocketDir"));
  directory = await mkdtemp(join(tmpdir(), "berth-collect-"));
  blobs = new FileBlobs(join(directory, "blobs"));
  layers = new LayerStore(join(directory, "layers"), blobs);
});
afterAll(async () => {
  await database.drop();
  await rm(directory, { recursive: true, force: true });
});

/** A stored layer of one file, whose last writer came `hours` ago. */
async function layer(content: string, hours: number): Promise<Layer> {
  const made = await layers.create([entry("file", { content })]);
  const at = new Date(Date.now() - hours * 3_600_000);
  const files = [
    layers.path(made.diffId).replace(/erofs$/, "json"),
    join(directory, "blobs/sha256", made.digest.slice(7)),
  ];
  for (const file of [layers.path(made.diffId), ...files]) await utimes(file, at, at);
  return made;
}

test("only what no row needs goes, and not what was stored just now", async () => {
  const [needed, cached, stale, fresh] = [
    await layer("needed", 30),
    await layer("cached", 30),
    await layer("stale", 30),
    await layer("fresh", 0),
  ];
  const projectId = newId("project");
  const { owner } = database;
  await owner`insert into projects (id, name) values (${projectId}, 'acme')`;
  await owner`insert into images (project_id, digest, media_type, manifest, config, layers, size_bytes)
    values (${projectId}, 'sha256:x', 'm', '{}', '{}', ${JSON.stringify([needed])}::text::jsonb, 10)`;
  await owner`insert into build_cache (project_id, key, result)
    values (${projectId}, 'k', ${JSON.stringify({ layer: cached })}::text::jsonb)`;
  const unmounted: string[] = [];
  const connection = { db: drizzle(owner, { schema }) } as Connection;
  const sandboxes = { unmountLayer: (path: string) => void unmounted.push(path) };
  await collect({ connection, blobs, layers, sandboxes, log: pino({ level: "silent" }) });

  const kept = [needed, cached, fresh];
  expect((await gather(layers.list())).sort()).toEqual(kept.map(({ diffId }) => diffId).sort());
  expect((await gather(blobs.list())).sort()).toEqual(kept.map(({ digest }) => digest).sort());
  expect(unmounted).toEqual([layers.path(stale.diffId)]);
});

test("a layer that a pull stored again counts as new", async () => {
  const again = await layer("again", 30);
  expect(await layers.ageMs(again.diffId)).toBeGreaterThan(3_600_000);
  await layers.import(() => blobs.open(again.digest), again, { always: true });
  expect(await layers.ageMs(again.diffId)).toBeLessThan(60_000);
});
