import { isKernelPath } from "../../build/paths.ts";
import { resolveIn } from "../../build/tree.ts";
import { BerthError } from "../../core/errors.ts";
import { type ByteString, type LayerEntry, noContent, noXattrs, toByteString } from "../../image/layer-entry.ts";
import type { SandboxMount } from "../../isolation/sandbox-spec.ts";
import { Destination, parentOf } from "./destination.ts";
import type { FileTree } from "./file-entry.ts";
import type { Placeable, StepMounts } from "./mounts.ts";
import type { BuildMeans } from "./ports.ts";

/** A path below a tree's root that something will be mounted over. */
interface Place {
  path: string;
  isFile: boolean;
}

const epoch = { seconds: 0, nanoseconds: 0 };

/**
 * Gives every mount a place. What the image lacks to mount over is a layer on top of it: the runtime would make it in the
 * writable layer, and it would stay in what the step made. For a mount within a bind mount it is a layer of that one; in
 * caches and memory the runtime makes it.
 * @param wanted outer ones first
 * @throws BerthError `invalid_dockerfile` when a directory would be over a file, or the reverse
 */
export async function placeMounts(
  wanted: readonly Placeable[],
  root: FileTree,
  withRoot: BuildMeans["withRoot"],
  layerOf: (entries: readonly LayerEntry[]) => Promise<string>,
): Promise<Pick<StepMounts, "mounts" | "top">> {
  const inRoot: Place[] = [];
  const inTrees = new Map<SandboxMount, Place[]>();
  for (const [index, { mount, isFile }] of wanted.entries()) {
    const { target } = mount;
    if (isKernelPath(target)) {
      throw new BerthError(
        "invalid_dockerfile",
        `Nothing can be mounted in ${JSON.stringify(target)}: it is the kernel's.`,
      );
    }
    const around = wanted.slice(0, index).findLast((other) => target.startsWith(`${other.mount.target}/`))?.mount;
    if (around === undefined) inRoot.push({ path: target, isFile });
    else if (around.kind === "tree") {
      const path = `${around.source}/${target.slice(around.target.length)}`;
      inTrees.set(around, [...(inTrees.get(around) ?? []), { path, isFile }]);
    }
  }
  const lacking = await missing(root, inRoot);
  const top = lacking.length === 0 ? null : await layerOf(lacking);
  const mounts: SandboxMount[] = [];
  for (const { mount } of wanted) {
    const places = inTrees.get(mount) ?? [];
    if (mount.kind !== "tree" || places.length === 0) {
      mounts.push(mount);
      continue;
    }
    const entries = await withRoot(mount.layers, (tree) => missing(tree, places));
    mounts.push(entries.length === 0 ? mount : { ...mount, layers: [...mount.layers, await layerOf(entries)] });
  }
  return { mounts, top };
}

/** Entries of what is not there to be mounted over. */
async function missing(tree: FileTree, places: readonly Place[]): Promise<LayerEntry[]> {
  const destination = new Destination(tree, { uid: 0, gid: 0, mtime: epoch });
  const entries: LayerEntry[] = [];
  const files = new Set<ByteString>();
  for (const { path, isFile } of places) {
    const found = await resolveIn(tree, toByteString(path));
    const type = found.entry?.type;
    if (found.blocked || (type !== undefined && type !== (isFile ? "file" : "directory"))) {
      const [is, there] = isFile ? ["file", "something else"] : ["directory", "no directory"];
      throw new BerthError(
        "invalid_dockerfile",
        `A ${is} can't be mounted at ${JSON.stringify(path)}: ${there} is there.`,
      );
    }
    if (type !== undefined || files.has(found.path)) continue;
    for await (const entry of destination.directories(isFile ? parentOf(found.path) : found.path)) entries.push(entry);
    if (!isFile) continue;
    files.add(found.path);
    const file = { type: "file", mode: 0o644, uid: 0, gid: 0, mtime: epoch, size: 0, target: "" } as const;
    entries.push({ path: found.path.slice(1), xattrs: noXattrs, content: noContent, ...file });
  }
  return entries;
}
