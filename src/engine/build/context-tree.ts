import type { IgnoreRules } from "../../build/ignore.ts";
import { type ByteString, noXattrs } from "../../image/layer-entry.ts";
import type { FileEntry, FileTree } from "./file-entry.ts";

/** A file of the context: its bytes are at `offset` of the spool. */
export interface ContextEntry extends FileEntry {
  offset: number;
  /** SHA-256 of the content in hex; empty unless it is a file. */
  sha256: string;
}

interface Node {
  entry: ContextEntry;
  children: Map<ByteString, Node> | null;
  /** The children's names in order; made when first asked for. */
  sorted: readonly ByteString[] | null;
}

export const directoryEntry: ContextEntry = {
  type: "directory",
  mode: 0o755,
  uid: 0,
  gid: 0,
  mtime: { seconds: 0, nanoseconds: 0 },
  size: 0,
  target: "",
  xattrs: noXattrs,
  offset: 0,
  sha256: "",
};

const readSize = 1 << 20;
/** So much is read at once where small files lie side by side. */
const windowSize = 256 << 10;

/** Where the content lies, such as a file that is open. */
export interface Spool {
  read(buffer: Buffer, offset: number, length: number, position: number): Promise<{ bytesRead: number }>;
}

/** A build context in memory: names, attributes and digests, while the content lies elsewhere. */
export class ContextTree implements FileTree<ContextEntry> {
  readonly #root: Node;
  readonly #spool: Spool;
  /** What was read last for a small file, and with it perhaps the next ones. */
  #window = { position: 0, bytes: Buffer.alloc(0) };

  constructor(spool: Spool, root: Node = { entry: directoryEntry, children: new Map(), sorted: null }) {
    this.#spool = spool;
    this.#root = root;
  }

  /**
   * Puts an entry in place; a later one of the same name replaces an earlier one, but directories merge. Parents that
   * have no entry of their own are made. False: a parent is no directory.
   */
  add(components: readonly ByteString[], entry: ContextEntry): boolean {
    const name = components.at(-1);
    let node = this.#root;
    for (const part of components.slice(0, -1)) {
      let next = node.children?.get(part);
      if (next === undefined) {
        next = { entry: directoryEntry, children: new Map(), sorted: null };
        node.children?.set(part, next);
      }
      if (next.children === null) return false;
      node = next;
    }
    if (name === undefined) {
      node.entry = entry;
      return entry.type === "directory";
    }
    const existing = node.children?.get(name);
    if (existing?.children != null && entry.type === "directory") existing.entry = entry;
    else node.children?.set(name, { entry, children: entry.type === "directory" ? new Map() : null, sorted: null });
    node.sorted = null;
    return true;
  }

  /** The tree without what the rules ignore. A directory that is ignored stays while something in it is kept. */
  without(rules: IgnoreRules): ContextTree {
    if (rules.empty) return this;
    const filter = (node: Node, path: readonly ByteString[]): Node | null => {
      const ignored = path.length > 0 && rules.ignores(path);
      if (node.children === null) return ignored ? null : node;
      const children = new Map<ByteString, Node>();
      for (const [name, child] of node.children) {
        const kept = filter(child, [...path, name]);
        if (kept !== null) children.set(name, kept);
      }
      return ignored && children.size === 0 ? null : { entry: node.entry, children, sorted: null };
    };
    return new ContextTree(this.#spool, filter(this.#root, []) ?? { ...this.#root, children: new Map(), sorted: null });
  }

  get(path: ByteString): Promise<ContextEntry | null> {
    return Promise.resolve(this.#find(path)?.entry ?? null);
  }

  list(path: ByteString): Promise<readonly ByteString[]> {
    const node = this.#find(path);
    if (node?.children == null) return Promise.resolve([]);
    node.sorted ??= [...node.children.keys()].sort();
    return Promise.resolve(node.sorted);
  }

  async *read(_path: ByteString, entry: ContextEntry): AsyncGenerator<Uint8Array, void, undefined> {
    if (entry.size > 0 && entry.size <= windowSize / 4) {
      yield await this.#readSmall(entry);
      return;
    }
    for (let done = 0; done < entry.size; ) {
      const buffer = Buffer.allocUnsafe(Math.min(readSize, entry.size - done));
      const { bytesRead } = await this.#spool.read(buffer, 0, buffer.length, entry.offset + done);
      if (bytesRead === 0) throw tooShort();
      done += bytesRead;
      yield buffer.subarray(0, bytesRead);
    }
  }

  async #readSmall({ offset, size }: ContextEntry): Promise<Uint8Array> {
    const { position, bytes } = this.#window;
    if (offset >= position && offset + size <= position + bytes.length) {
      return bytes.subarray(offset - position, offset - position + size);
    }
    const buffer = Buffer.allocUnsafeSlow(windowSize);
    let filled = 0;
    while (filled < size) {
      const { bytesRead } = await this.#spool.read(buffer, filled, windowSize - filled, offset + filled);
      if (bytesRead === 0) throw tooShort();
      filled += bytesRead;
    }
    this.#window = { position: offset, bytes: buffer.subarray(0, filled) };
    return buffer.subarray(0, size);
  }

  #find(path: ByteString): Node | undefined {
    let node: Node | undefined = this.#root;
    for (const part of path.split("/")) {
      if (part !== "") node = node?.children?.get(part);
    }
    return node;
  }
}

function tooShort(): Error {
  return new Error("the spooled context is shorter than its index says");
}
