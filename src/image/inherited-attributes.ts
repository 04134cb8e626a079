import { ErofsReader, type FoundNode } from "./erofs/reader.ts";
import { type ByteString, type LayerEntry, noContent } from "./layer-entry.ts";

/** One layer of a stack: its image and the directories that it uses without describing them. */
export interface StackedLayer {
  path: string;
  implicit: readonly ByteString[];
}

/**
 * A layer that has `tmp/x` and no `tmp/` says nothing of `tmp`, but its image must, and overlayfs shows the topmost
 * layer's attributes: `tmp` would lose its 1777. These are the entries of a layer on top that gives such directories back
 * what the lower layers say; mostly there are none.
 *
 * @param stack Lowest first.
 */
export async function inheritedAttributes(stack: readonly StackedLayer[]): Promise<LayerEntry[]> {
  const [, ...above] = stack;
  const paths = new Set(above.flatMap((layer) => layer.implicit));
  if (paths.size === 0) return [];
  const readers: ErofsReader[] = [];
  try {
    for (const layer of stack) readers.push(await ErofsReader.open(layer.path));
    const layers = stack.map((layer, i) => ({ implicit: new Set(layer.implicit), reader: readers[i] }));
    const entries = new Map<ByteString, LayerEntry>();
    for (const path of [...paths].sort()) {
      const inherited = describe(layers, path);
      if (inherited === null || !inherited.lost || isDefault(inherited.node)) continue;
      // The directories above it are in that layer too, so they need their own attributes there.
      const components = path.split("/");
      for (let depth = 1; depth < components.length; depth++) {
        const parent = components.slice(0, depth).join("/");
        const node = entries.has(parent) ? null : (describe(layers, parent)?.node ?? null);
        if (node !== null) entries.set(parent, toEntry(parent, node));
      }
      entries.set(path, toEntry(path, inherited.node));
    }
    return [...entries.values()];
  } finally {
    for (const reader of readers) await reader.close();
  }
}

/**
 * The attributes that the topmost layer which describes a directory gives it; null: none does. `lost`: a layer above that
 * one uses the directory too.
 */
function describe(
  layers: readonly { implicit: ReadonlySet<ByteString>; reader: ErofsReader | undefined }[],
  path: ByteString,
): { node: FoundNode; lost: boolean } | null {
  let lost = false;
  for (const { implicit, reader } of layers.toReversed()) {
    const found = reader?.lookup(path.split("/"));
    if (found?.node?.type === "directory") {
      if (!implicit.has(path)) return { node: found.node, lost };
      lost = true;
    }
    if (found?.sealed === true) return null;
  }
  return null;
}

/** What an implicit directory's image says anyway. */
function isDefault(node: FoundNode): boolean {
  return node.mode === 0o755 && node.uid === 0 && node.gid === 0 && node.xattrs.size === 0;
}

function toEntry(path: ByteString, node: FoundNode): LayerEntry {
  const { mode, uid, gid, mtime, xattrs } = node;
  return { path, type: "directory", mode, uid, gid, mtime, xattrs, size: 0, target: "", content: noContent };
}
