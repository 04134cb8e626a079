import type { ByteString } from "../../image/layer-entry.ts";
import type { FileEntry, FileTree } from "./file-entry.ts";
import { RootView } from "./root-view.ts";

/** What is kept of a tree at most: entries, bytes of content in all, and of one file. */
const most = { entries: 20_000, bytes: 4 << 20, fileBytes: 16 << 10 };

/**
 * A tree that can't change, with what was seen of it: a COPY looks at each file twice, for its key and for its layer, and
 * asking the kernel takes most of the time that small files take.
 */
export class RememberedTree implements FileTree {
  readonly #tree: FileTree;
  readonly #entries = new Map<ByteString, FileEntry | null>();
  readonly #contents = new Map<ByteString, Uint8Array>();
  #bytes = 0;

  constructor(tree: FileTree) {
    this.#tree = tree;
  }

  async get(path: ByteString): Promise<FileEntry | null> {
    const known = this.#entries.get(path);
    if (known !== undefined) return known;
    const entry = await this.#tree.get(path);
    if (this.#entries.size < most.entries) this.#entries.set(path, entry);
    return entry;
  }

  list(path: ByteString): Promise<readonly ByteString[]> {
    return this.#tree.list(path);
  }

  async *read(path: ByteString, entry: FileEntry): AsyncGenerator<Uint8Array, void, undefined> {
    const known = this.#contents.get(path);
    if (known !== undefined) {
      yield known;
      return;
    }
    const parts: Uint8Array[] = [];
    const keeps = entry.size <= most.fileBytes && this.#bytes + entry.size <= most.bytes;
    for await (const part of this.#tree.read(path, entry)) {
      if (keeps) parts.push(part);
      yield part;
    }
    if (!keeps || this.#contents.has(path)) return;
    this.#contents.set(path, Buffer.concat(parts));
    this.#bytes += entry.size;
  }
}

/** Roots that a build looked at last: where it copies from, and what it copies to. */
const lastRoots = 4;

/** The trees of mounted roots, by where they are: one that is mounted anew is somewhere else. */
export class RememberedRoots {
  readonly #trees = new Map<string, FileTree>();

  at(root: string): FileTree {
    const tree = this.#trees.get(root) ?? new RememberedTree(new RootView(root));
    // The last one is the one that was used last.
    this.#trees.delete(root);
    this.#trees.set(root, tree);
    for (const [oldest] of this.#trees) if (this.#trees.size > lastRoots) this.#trees.delete(oldest);
    return tree;
  }
}
