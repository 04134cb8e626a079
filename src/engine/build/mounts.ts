import type { Mount } from "../../build/mount.ts";
import type { RunStep } from "../../build/step.ts";
import { resolveIn } from "../../build/tree.ts";
import { BerthError } from "../../core/errors.ts";
import type { Layer } from "../../core/image.ts";
import { showBytes, toByteString } from "../../image/layer-entry.ts";
import type { SandboxMount } from "../../isolation/sandbox-spec.ts";
import { abortableEntries } from "./abortable.ts";
import { openCaches } from "./cache-mounts.ts";
import { placeMounts } from "./mount-places.ts";
import { isLayered, type Origins, originLayers, withLayers, withOrigin } from "./origins.ts";
import type { BuildIdentity, BuildMeans } from "./ports.ts";
import { makeScratchLayer, type ScratchLayer, treeEntries } from "./scratch-layer.ts";

/** What the mounts of a RUN are in its sandbox. */
export interface StepMounts {
  mounts: readonly SandboxMount[];
  /** A layer on top of the root, with what the image lacks to mount over; null: it lacks nothing. */
  top: string | null;
  /** `NAME=value` of the secrets that are in the environment. */
  env: readonly string[];
}

/** All that mounts are made of. */
export interface MountState extends Origins {
  means: BuildMeans;
  build: BuildIdentity;
}

/** A mount, and whether a file is to be mounted over. */
export interface Placeable {
  mount: SandboxMount;
  isFile: boolean;
}

/**
 * Makes the mounts of a RUN over `below`, and takes away what was made for them when `use` is done.
 * @throws BerthError `secret_missing`, `invalid_context`, `invalid_dockerfile`; the signal's reason
 */
export async function withMounts<T>(
  state: MountState,
  step: RunStep,
  below: readonly Layer[],
  use: (mounts: StepMounts) => Promise<T>,
): Promise<T> {
  if (step.mounts.length === 0) return use({ mounts: [], top: null, env: [] });
  // Outer ones first: an inner one would be hidden by a mount that comes after it.
  const wanted = step.mounts.toSorted((one, other) => depthOf(one) - depthOf(other));
  const secrets = readSecrets(state, wanted);
  const scratch: ScratchLayer[] = [];
  const layerOf = async (entries: Parameters<typeof makeScratchLayer>[0]): Promise<string> => {
    const layer = await makeScratchLayer(abortableEntries(entries, state.signal), state.means);
    scratch.push(layer);
    return layer.path;
  };
  const caches = await openCaches(state, wanted);
  try {
    const placeable: Placeable[] = [];
    for (const mount of wanted) {
      switch (mount.type) {
        case "tmpfs":
          placeable.push({ mount: { kind: "tmpfs", target: mount.target, size: mount.size }, isFile: false });
          break;
        case "bind":
          placeable.push(await bound(state, mount, layerOf));
          break;
        case "secret": {
          const { target, mode, uid, gid } = mount;
          const content = secrets.get(mount.id);
          if (target !== null && content !== undefined) {
            placeable.push({ mount: { kind: "file", target, content, mode, uid, gid }, isFile: true });
          }
          break;
        }
        case "cache": {
          const { target, readOnly } = mount;
          const path = caches.pathOf(mount);
          placeable.push({ mount: { kind: "directory", target, path, writable: !readOnly }, isFile: false });
        }
      }
    }
    const env = wanted.flatMap((mount) => {
      const content = mount.type === "secret" && mount.env !== null ? secrets.get(mount.id) : undefined;
      return mount.type === "secret" && content !== undefined ? [`${String(mount.env)}=${content}`] : [];
    });
    const { mounts, top } = await withLayers(state.means, below, (root) =>
      placeMounts(placeable, root, state.means.withRoot, layerOf),
    );
    return await use({ mounts, top, env });
  } finally {
    caches.close();
    for (const layer of scratch) await layer.remove();
  }
}

function depthOf({ target }: Mount): number {
  return target === null ? 0 : target.split("/").length;
}

/** The secrets that the mounts ask for, as far as the build has them. */
function readSecrets({ means }: MountState, mounts: readonly Mount[]): Map<string, string> {
  const found = new Map<string, string>();
  for (const mount of mounts) {
    if (mount.type !== "secret") continue;
    const value = means.secrets.get(mount.id);
    if (value !== undefined) found.set(mount.id, value);
    else if (mount.required) {
      const id = JSON.stringify(mount.id.slice(0, 200));
      throw new BerthError("secret_missing", `The step needs the secret ${id}, which did not come with the build.`);
    }
  }
  return found;
}

/** A bind mount: of the origin's own layers, or of a layer that is made of what it shows. */
async function bound(
  state: MountState,
  { target, origin, source, readOnly }: Extract<Mount, { type: "bind" }>,
  layerOf: (entries: ReturnType<typeof treeEntries>) => Promise<string>,
): Promise<Placeable> {
  return withOrigin(state, origin, async (tree) => {
    const found = await resolveIn(tree, toByteString(source));
    const type = found.entry?.type;
    if (found.blocked || (type !== "directory" && type !== "file")) {
      const shown = showBytes(toByteString(source));
      throw new BerthError("invalid_context", `${shown} is no file or directory that could be mounted.`);
    }
    const isFile = type === "file";
    const layers = isLayered(origin) ? await state.means.layers.lowers(originLayers(state, origin)) : [];
    if (layers.length > 0) {
      const path = Buffer.from(found.path, "latin1").toString();
      return { mount: { kind: "tree", target, layers, source: path, writable: !readOnly }, isFile };
    }
    const place = isFile ? "/file" : "/";
    const path = await layerOf(treeEntries(tree, found.path, place));
    return { mount: { kind: "tree", target, layers: [path], source: place, writable: !readOnly }, isFile };
  });
}
