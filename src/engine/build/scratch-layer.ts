import { randomUUID } from "node:crypto";
import { rm } from "node:fs/promises";
import { convertLayer } from "../../image/convert.ts";
import { type ByteString, type LayerEntry, noContent } from "../../image/layer-entry.ts";
import { defaultLimits } from "../../image/layer-limits.ts";
import { writeTar } from "../../image/tar-write.ts";
import type { FileTree } from "./file-entry.ts";
import type { BuildMeans } from "./ports.ts";

/** A layer that is in no image and no store. */
export interface ScratchLayer {
  path: string;
  remove(): Promise<void>;
}

/** Makes a layer that only a step sees while it runs, and that no blob is made of. */
export async function makeScratchLayer(
  entries: AsyncIterable<LayerEntry> | Iterable<LayerEntry>,
  { scratch, sandboxes }: Pick<BuildMeans, "scratch" | "sandboxes">,
): Promise<ScratchLayer> {
  const path = `${scratch}/${randomUUID()}.erofs`;
  const remove = async (): Promise<void> => {
    sandboxes.unmountLayer(path);
    await rm(path, { force: true });
  };
  try {
    await convertLayer(writeTar(entries), path, defaultLimits);
    return { path, remove };
  } catch (error) {
    await remove();
    throw error;
  }
}

/** A file or directory of a tree, with all that is in it, as the entries of a layer that has it at `to`. */
export async function* treeEntries(tree: FileTree, from: ByteString, to: ByteString): AsyncGenerator<LayerEntry> {
  const entry = await tree.get(from);
  // Sockets, pipes and devices have no content that could be shown.
  if (entry === null || entry.type === "other") return;
  const { type, mode, uid, gid, mtime, size, target, xattrs } = entry;
  const content = type === "file" ? tree.read(from, entry) : noContent;
  yield { path: to.slice(1), type, mode, uid, gid, mtime, size, target, xattrs, content };
  if (type !== "directory") return;
  const below = (path: ByteString, name: ByteString) => (path === "/" ? `/${name}` : `${path}/${name}`);
  for (const name of await tree.list(from)) yield* treeEntries(tree, below(from, name), below(to, name));
}
