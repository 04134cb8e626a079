import { deleteExpired, neededBlobs, neededLayers } from "../../db/upkeep.ts";
import type { Sandboxes } from "../../isolation/sandbox.ts";
import type { Services } from "../services.ts";

/** What a writer has just stored and not yet recorded is left alone this long: a pull or build may begin meanwhile. */
const graceMs = 60 * 60 * 1000;

/**
 * Deletes rows that have served their time, then layers and blobs that no row needs. To be begun only while no job of
 * this host runs: a pull or build counts on what it found in the store until it has recorded its image.
 */
export async function collect(
  services: Pick<Services, "connection" | "blobs" | "layers" | "log"> & { sandboxes: Pick<Sandboxes, "unmountLayer"> },
): Promise<void> {
  const { connection, blobs, layers, sandboxes, log } = services;
  await deleteExpired(connection.db);
  const [digests, diffIds] = await Promise.all([neededBlobs(connection.db), neededLayers(connection.db)]);
  await blobs.deleteAbandoned(graceMs);
  let removed = 0;
  for await (const diffId of layers.list()) {
    if (diffIds.has(diffId) || (await layers.ageMs(diffId)) < graceMs) continue;
    sandboxes.unmountLayer(layers.path(diffId));
    await layers.remove(diffId);
    removed++;
  }
  for await (const digest of blobs.list()) {
    if (digests.has(digest) || (await blobs.ageMs(digest)) < graceMs) continue;
    await blobs.delete(digest);
    removed++;
  }
  if (removed > 0) log.info({ removed }, "collected layers and blobs that nothing needs");
}
