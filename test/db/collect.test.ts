import { mkdtemp, rm, utimes } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pino } from "pino";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { newId } from "../../src/core/ids.ts";
import type { Layer } from "../../src/core/image.ts";
import { drizzle } from "../../src/db/drizzle.ts";
import * as schema from "../../src/db/schema.ts";
import { collect } from "../../src/engine/upkeep/collect.ts";
import { FileBlobs } from "../../src/image/file-blobs.ts";
import { LayerStore } from "../../src/image/layers.ts";
import { openHost } from "../support/host.ts";
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

/** A stored layer of one file, that was last used `hours` ago. */
async function layer(content: string, hours: number): Promise<Layer> {
  const made = await layers.create([entry("file", { content })]);
  const at = new Date(Date.now() - hours * 3_600_000);
  for (const extension of ["erofs", "json"]) {
    await utimes(layers.path(made.diffId).replace(/erofs$/, extension), at, at);
  }
  return made;
}

test("a host's cache loses what no image needs, and later what no container of its own uses", async () => {
  const day = 24;
  const [used, needed, cached, idle, stale, fresh] = [
    await layer("used", 30 * day),
    await layer("needed", 6 * day),
    await layer("cached", 6 * day),
    await layer("idle", 8 * day),
    await layer("stale", 2),
    await layer("fresh", 0),
  ];
  const { owner } = database;
  const { id: hostId } = await openHost(drizzle(owner, { schema }));
  const connection = await database.asHost(hostId);
  const projectId = newId("project");
  const image = async (digest: string, of: Layer[]) => {
    await owner`insert into images (project_id, digest, media_type, manifest, config, layers, size_bytes)
      values (${projectId}, ${digest}, 'm', '{}', '{}', ${JSON.stringify(of)}::text::jsonb, 10)`;
  };
  await owner`insert into projects (id, name) values (${projectId}, 'acme')`;
  await image("sha256:x", [used]);
  await image("sha256:y", [needed, idle]);
  await owner`insert into containers (id, project_id, host_id, name, spec, image_reference, image_digest, cpus, memory,
    pids, disk, wanted) values (${newId("container")}, ${projectId}, ${hostId}, 'web', '{}', 'web:1', 'sha256:x', 1, 1, 1,
    1, 'running')`;
  await owner`insert into build_cache (project_id, key, result)
    values (${projectId}, 'k', ${JSON.stringify({ layer: cached })}::text::jsonb)`;
  const unmounted: string[] = [];
  const sandboxes = {
    caches: { tidy: () => Promise.resolve() },
    unmountLayer: (path: string) => void unmounted.push(path),
  };
  const log = pino({ level: "silent" });
  await collect({ connection, host: { id: hostId }, blobs, layers, sandboxes, log });

  const kept = [used, needed, cached, fresh];
  expect((await gather(layers.list())).sort()).toEqual(kept.map(({ diffId }) => diffId).sort());
  expect(unmounted.sort()).toEqual([layers.path(stale.diffId), layers.path(idle.diffId)].sort());
});

test("a layer that was asked for again counts as used", async () => {
  const again = await layer("again", 30);
  expect(await layers.unusedMs(again.diffId)).toBeGreaterThan(3_600_000);
  await layers.ensure(again);
  expect(await layers.unusedMs(again.diffId)).toBeLessThan(60_000);
});
