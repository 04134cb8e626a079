import { Pauses } from "../../core/pauses.ts";
import { type DirectoryEntry, ErofsReader, type FoundNode } from "../../image/erofs/reader.ts";
import { type ByteString, noXattrs } from "../../image/layer-entry.ts";
import { keptXattrs } from "../../image/layer-xattrs.ts";
import { smallFile } from "../../image/small-file.ts";
import type { FileEntry, FileTree } from "./file-entry.ts";

const readSize = 1 << 20;
/** Directories that are kept: those of one COPY are looked at again and again. A name takes 100 bytes and more. */
const kept = { directories: 64, names: 50_000, atLeast: 4 };
/** Roots that are kept: where a build copies from, and what it copies to. */
const maxTrees = 8;

/** A file of an image, and where it is. */
interface ImageEntry extends FileEntry {
  layer: ErofsReader;
  node: FoundNode;
}

/** A directory as several layers have it, the topmost first; its attributes are that one's. */
interface MergedDirectory {
  entry: ImageEntry;
  /** Of all parts, hidden ones too. */
  names: number;
  parts: readonly { layer: ErofsReader; entries: ReadonlyMap<ByteString, DirectoryEntry> }[];
}

/**
 * The root that layers make, read from their images as overlayfs would show it, without mounting anything. Images don't
 * change, and no path is ever the host's.
 */
export class ImageTree implements FileTree<ImageEntry> {
  /** Topmost first. */
  readonly #layers: readonly ErofsReader[];
  readonly #directories = new Map<ByteString, MergedDirectory>();
  /** Of all of these. */
  #names = 0;
  readonly #pauses = new Pauses();

  /** @param layers lowest first; they stay the caller's. */
  constructor(layers: readonly ErofsReader[]) {
    this.#layers = layers.toReversed();
  }

  async get(path: ByteString): Promise<ImageEntry | null> {
    await this.#pauses.take();
    return this.#find(path);
  }

  async list(path: ByteString): Promise<readonly ByteString[]> {
    await this.#pauses.take();
    const hidden = new Set<ByteString>();
    const names = new Set<ByteString>();
    for (const { entries } of this.#directory(path)?.parts ?? []) {
      for (const [name, { isWhiteout }] of entries) {
        if (!names.has(name) && !hidden.has(name)) (isWhiteout ? hidden : names).add(name);
      }
    }
    return [...names].sort();
  }

  async *read(_path: ByteString, { layer, node }: ImageEntry): AsyncGenerator<Uint8Array, void, undefined> {
    if (node.size <= smallFile) {
      await this.#pauses.take();
      if (node.size > 0) yield layer.content(node);
      return;
    }
    for (let done = 0; done < node.size; ) {
      const bytes = await layer.contentFrom(node, done, readSize);
      done += bytes.length;
      yield bytes;
    }
  }

  #find(path: ByteString): ImageEntry | null {
    if (path === "/") return this.#directory(path)?.entry ?? null;
    const slash = path.lastIndexOf("/");
    const name = path.slice(slash + 1);
    for (const { layer, entries } of this.#directory(path.slice(0, slash) || "/")?.parts ?? []) {
      const found = entries.get(name);
      if (found === undefined) continue;
      return found.isWhiteout ? null : entryOf(layer, layer.node(found.nid));
    }
    return null;
  }

  /** null: it is none. */
  #directory(path: ByteString): MergedDirectory | null {
    const known = this.#directories.get(path);
    const directory = known ?? this.#merge(path);
    if (directory === null) return null;
    // The last one is the one that was used last.
    this.#directories.delete(path);
    this.#directories.set(path, directory);
    if (known === undefined) this.#trim(directory);
    return directory;
  }

  /** Forgets what was not used for longest; of the last few, which are read in turns, none. */
  #trim(added: MergedDirectory): void {
    this.#names += added.names;
    for (const [path, { names }] of this.#directories) {
      const { size } = this.#directories;
      if (size <= kept.atLeast || (size <= kept.directories && this.#names <= kept.names)) return;
      this.#directories.delete(path);
      this.#names -= names;
    }
  }

  #merge(path: ByteString): MergedDirectory | null {
    const found = path === "/" ? this.#roots() : this.#named(path);
    const [top] = found;
    if (top === undefined) return null;
    const parts = found.map(({ layer, node }) => ({ layer, entries: layer.entries(node) }));
    return { entry: top, names: parts.reduce((sum, { entries }) => sum + entries.size, 0), parts };
  }

  #roots(): ImageEntry[] {
    return visible(this.#layers.map((layer) => entryOf(layer, layer.root())));
  }

  /** What the layers have of a directory; nothing when the topmost says that it is none. */
  #named(path: ByteString): ImageEntry[] {
    const slash = path.lastIndexOf("/");
    const name = path.slice(slash + 1);
    const found: ImageEntry[] = [];
    for (const { layer, entries } of this.#directory(path.slice(0, slash) || "/")?.parts ?? []) {
      const entry = entries.get(name);
      if (entry === undefined) continue;
      if (entry.isWhiteout) break;
      found.push(entryOf(layer, layer.node(entry.nid)));
    }
    return visible(found);
  }
}

/** Those directories, topmost first, that show: down to one that is opaque, or to what is none. */
function visible(found: readonly ImageEntry[]): ImageEntry[] {
  const shown: ImageEntry[] = [];
  for (const entry of found) {
    if (entry.type !== "directory") break;
    shown.push(entry);
    if (entry.node.opaque) break;
  }
  return shown;
}

function entryOf(layer: ErofsReader, node: FoundNode): ImageEntry {
  const { mode, uid, gid, mtime, size } = node;
  const type = node.type === "whiteout" || node.type === "fifo" ? "other" : node.type;
  return {
    type,
    mode,
    uid,
    gid,
    mtime,
    size: type === "file" ? size : 0,
    target: type === "symlink" ? layer.content(node).toString("latin1") : "",
    xattrs: type === "symlink" ? noXattrs : keptXattrs(node.xattrs),
    layer,
    node,
  };
}

/** The images that a build looks into: each is opened once, and closed with the build, or when nobody reads it any more. */
export class OpenImages {
  readonly #readers = new Map<string, Promise<ErofsReader>>();
  readonly #trees = new Map<string, ImageTree>();
  #users = 0;
  #closed = false;

  /** Lends `use` the root that these images make, which can be read until it is done, also when it ends after the build. */
  async with<T>(paths: readonly string[], use: (root: FileTree) => Promise<T>): Promise<T> {
    this.#users++;
    try {
      return await use(await this.tree(paths));
    } finally {
      this.#users--;
      if (this.#closed) await this.close();
    }
  }

  /** The root that these images (paths, lowest first) make. */
  async tree(paths: readonly string[]): Promise<FileTree> {
    const key = paths.join("\n");
    const tree = this.#trees.get(key) ?? new ImageTree(await Promise.all(paths.map((path) => this.#reader(path))));
    this.#trees.delete(key);
    this.#trees.set(key, tree);
    for (const [oldest] of this.#trees) if (this.#trees.size > maxTrees) this.#trees.delete(oldest);
    return tree;
  }

  /** Idempotent. What is read now is closed after it. */
  async close(): Promise<void> {
    this.#closed = true;
    if (this.#users > 0) return;
    for (const reader of await Promise.allSettled(this.#readers.values())) {
      if (reader.status === "fulfilled") await reader.value.close();
    }
  }

  #reader(path: string): Promise<ErofsReader> {
    const known = this.#readers.get(path);
    if (known !== undefined) return known;
    const reader = ErofsReader.open(path);
    this.#readers.set(path, reader);
    reader.catch(() => this.#readers.delete(path));
    return reader;
  }
}
