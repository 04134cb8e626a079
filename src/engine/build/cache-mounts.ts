import { chmod, chown } from "node:fs/promises";
import { chainKey } from "../../build/keys.ts";
import type { Mount } from "../../build/mount.ts";
import type { OpenCache } from "../../isolation/caches.ts";
import { contentOf } from "./mounted-content.ts";
import type { MountState } from "./mounts.ts";
import { isLayered, originLayers, withOrigin } from "./origins.ts";
import { writeTree } from "./write-tree.ts";

type CacheMount = Extract<Mount, { type: "cache" }>;

/** The caches of a step, until they are closed. */
export interface StepCaches {
  pathOf(mount: CacheMount): string;
  close(): void;
}

/**
 * Opens the caches that a step mounts, each once. Whoever waits for several waits in the same order, so that no two steps
 * wait for each other.
 */
export async function openCaches(state: MountState, mounts: readonly Mount[]): Promise<StepCaches> {
  const ids = new Map<CacheMount, string>();
  for (const mount of mounts) if (mount.type === "cache") ids.set(mount, await cacheId(state, mount));
  const wanted = [...ids].toSorted(([, one], [, other]) => (one < other ? -1 : 1));
  const open = new Map<string, OpenCache>();
  const close = (): void => {
    for (const cache of open.values()) cache.close();
  };
  try {
    for (const [mount, id] of wanted) if (!open.has(id)) open.set(id, await openCache(state, mount, id));
  } catch (error) {
    close();
    throw error;
  }
  return {
    close,
    pathOf: (mount) => {
      const cache = open.get(ids.get(mount) ?? "");
      if (cache === undefined) throw new Error("a cache is mounted that was not opened");
      return cache.path;
    },
  };
}

/** Caches of one id that begin with different files are different ones; where the same files are from does not matter. */
async function cacheId(state: MountState, { id, origin, source }: CacheMount): Promise<string> {
  return JSON.stringify([id, origin === null ? null : [await seedOf(state, origin, source), source]]);
}

async function openCache(state: MountState, mount: CacheMount, id: string): Promise<OpenCache> {
  const { sharing, origin, source, mode, uid, gid } = mount;
  return state.means.sandboxes.caches.open({
    projectId: state.build.projectId,
    id,
    sharing,
    signal: state.signal,
    begin: async (directory) => {
      if (origin !== null) await withOrigin(state, origin, (tree) => writeTree(tree, source, directory));
      await chown(directory, uid, gid);
      await chmod(directory, mode & 0o7777);
    },
  });
}

function seedOf(state: MountState, origin: NonNullable<CacheMount["origin"]>, source: string): Promise<string> {
  return isLayered(origin) ? Promise.resolve(chainKey(originLayers(state, origin))) : contentOf(state, origin, source);
}
