import { type BigIntStats, constants } from "node:fs";
import { type FileHandle, open, readdir, readlink } from "node:fs/promises";
import { BerthError } from "../core/errors.ts";
import {
  type ByteString,
  type EntryType,
  type LayerEntry,
  noContent,
  noXattrs,
  timestampOf,
  toByteString,
} from "../image/layer-entry.ts";
import { type ContainerRoot, linkOf, nameIn, openName } from "./container-root.ts";

/** Bounds of one archive, so that a sparse file, a deep tree or one that grows ends. */
const limits = { bytes: 64 * 2 ** 30, entries: 10_000_000, depth: 500 };
const readSize = 1 << 20;

/** What a path leads to, as its container sees it. */
export interface FileStat {
  name: string;
  type: EntryType | "socket";
  mode: number;
  uid: number;
  gid: number;
  /** Bytes of a file; 0 of others. */
  size: number;
  mtime: string;
}

/** @throws BerthError `file_not_found`, `invalid_path` */
export async function statPath(root: ContainerRoot, path: string): Promise<FileStat> {
  const handle = await root.open(path);
  try {
    const stats = await handle.stat({ bigint: true });
    return {
      name: lastName(path),
      type: typeOf(stats),
      mode: Number(stats.mode) & 0o7777,
      uid: root.idInside(Number(stats.uid)),
      gid: root.idInside(Number(stats.gid)),
      size: stats.isFile() ? Number(stats.size) : 0,
      mtime: new Date(Number(stats.mtimeMs)).toISOString(),
    };
  } finally {
    await handle.close();
  }
}

/**
 * What a path leads to, and everything below it, as entries of a tar whose names begin with the path's last name. A file
 * has the length that it had when its turn came, whatever a process writes meanwhile. Sockets, devices and extended
 * attributes are left out.
 * @throws BerthError `file_not_found`, `invalid_path`, `body_too_large`; the signal's reason
 */
export async function* readTree(
  root: ContainerRoot,
  path: string,
  signal: AbortSignal,
): AsyncGenerator<LayerEntry, void, undefined> {
  const top = await root.open(path);
  const target = () => Promise.resolve("");
  yield* new Walk(root, signal).visit({ handle: top, path: toByteString(lastName(path)), target, depth: 0 });
}

/** A place of the tree. `handle` is closed by the visit; `target` reads where a symlink leads. */
interface Place {
  handle: FileHandle;
  path: ByteString;
  target: () => Promise<ByteString>;
  depth: number;
}

class Walk {
  readonly #root: ContainerRoot;
  readonly #signal: AbortSignal;
  /** Files with several names: the first of them. */
  readonly #linked = new Map<bigint, ByteString>();
  #bytes = 0;
  #entries = 0;

  constructor(root: ContainerRoot, signal: AbortSignal) {
    this.#root = root;
    this.#signal = signal;
  }

  async *visit({ handle, path, target, depth }: Place): AsyncGenerator<LayerEntry, void, undefined> {
    try {
      this.#signal.throwIfAborted();
      const stats = await handle.stat({ bigint: true });
      const type = typeOf(stats);
      if (type === "socket" || type === "device") return;
      const first = type === "file" && stats.nlink > 1n ? this.#linked.get(stats.ino) : undefined;
      const size = type === "file" && first === undefined ? Number(stats.size) : 0;
      this.#count(size, depth);
      if (type === "file" && stats.nlink > 1n && first === undefined) this.#linked.set(stats.ino, path);
      yield {
        path,
        type: first === undefined ? type : "hardlink",
        mode: Number(stats.mode) & 0o7777,
        uid: this.#root.idInside(Number(stats.uid)),
        gid: this.#root.idInside(Number(stats.gid)),
        mtime: timestampOf(stats.mtimeNs),
        size,
        target: first ?? (type === "symlink" ? await target() : ""),
        xattrs: noXattrs,
        content: size > 0 ? this.#content(handle, size) : noContent,
      };
      if (type === "directory") yield* this.#below(handle, path, depth + 1);
    } finally {
      await handle.close();
    }
  }

  async *#below(directory: FileHandle, path: ByteString, depth: number): AsyncGenerator<LayerEntry, void, undefined> {
    const names = await readdir(linkOf(directory), { encoding: "latin1" });
    for (const name of names.sort()) {
      const handle = await openName(directory, name);
      if (handle === null) continue;
      // Not followed, so it need not be the same link any more that the handle is.
      const target = () => readlink(nameIn(directory, name), { encoding: "latin1" });
      yield* this.visit({ handle, path: `${path}/${name}`, target, depth });
    }
  }

  /** So many bytes: cut off when it has grown, zeros for what it has lost. */
  async *#content(handle: FileHandle, size: number): AsyncGenerator<Uint8Array, void, undefined> {
    const file = await open(linkOf(handle), constants.O_RDONLY | constants.O_NOCTTY);
    try {
      for (let left = size; left > 0; ) {
        this.#signal.throwIfAborted();
        const length = Math.min(left, readSize);
        const { bytesRead, buffer } = await file.read(Buffer.allocUnsafe(length), 0, length);
        const chunk = bytesRead === 0 ? Buffer.alloc(length) : buffer.subarray(0, bytesRead);
        left -= chunk.length;
        yield chunk;
      }
    } finally {
      await file.close();
    }
  }

  #count(bytes: number, depth: number): void {
    this.#bytes += bytes;
    this.#entries++;
    if (this.#bytes > limits.bytes) throw new BerthError("body_too_large", "The files have more than 64 GiB.");
    if (this.#entries > limits.entries) throw new BerthError("body_too_large", "There are more than 10,000,000 files.");
    if (depth > limits.depth) throw new BerthError("body_too_large", "The directories are nested deeper than 500.");
  }
}

function typeOf(stats: BigIntStats): FileStat["type"] {
  if (stats.isFile()) return "file";
  if (stats.isDirectory()) return "directory";
  if (stats.isSymbolicLink()) return "symlink";
  if (stats.isFIFO()) return "fifo";
  return stats.isSocket() ? "socket" : "device";
}

/** The last name of a path; `.` for the root itself. */
function lastName(path: string): string {
  return path.split("/").findLast((name) => name !== "" && name !== ".") ?? ".";
}
