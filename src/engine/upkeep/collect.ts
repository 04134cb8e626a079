import { deleteExpired, layersInUse, neededLayers } from "../../db/upkeep.ts";
import type { Sandboxes } from "../../isolation/sandbox.ts";
import type { Services } from "../services.ts";

/** What was used just now is left alone so long: a build may be about to mount it. */
const graceMs = 60 * 60 * 1000;
/** What images need and no container of this host uses can be had again from the blob store. */
const uselessMs = 7 * 24 * graceMs;

/**
 * Deletes rows that have served their time, and of this host's cache the layers that it has no use for. It runs beside
 * jobs: whoever counts on a layer has used it just now, and gets it again from the store should it be gone. The store
 * itself is collected by the API; see image/collect-blobs.ts.
 */
export async function collect(
  services: Pick<Services, "connection" | "blobs" | "layers" | "log"> & {
    host: Pick<Services["host"], "id">;
    sandboxes: Pick<Sandboxes, "unmountLayer"> & { caches: Pick<Sandboxes["caches"], "tidy"> };
  },
): Promise<void> {
  const { connection, host, blobs, layers, sandboxes, log } = services;
  await deleteExpired(connection.db);
  await blobs.tidy(graceMs);
  await sandboxes.caches.tidy();
  const cached: string[] = [];
  for await (const diffId of layers.list()) cached.push(diffId);
  const needed = await neededLayers(connection.db, cached);
  const used = await layersInUse(connection.db, host.id);
  let removed = 0;
  for (const diffId of cached) {
    if (used.has(diffId)) continue;
    const unmount = () => sandboxes.unmountLayer(layers.path(diffId));
    if (await layers.removeUnused(diffId, needed.has(diffId) ? uselessMs : graceMs, unmount)) removed++;
  }
  if (removed > 0) log.info({ removed }, "removed layers that this host has no use for");
}
