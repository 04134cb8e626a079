import {
  type BigIntStats,
  closeSync,
  constants,
  lstatSync,
  openSync,
  readdirSync,
  readlinkSync,
  readSync,
} from "node:fs";
import { open } from "node:fs/promises";
import { Pauses } from "../../core/pauses.ts";
import { readXattrs } from "../../image/file-xattrs.ts";
import type { ByteString } from "../../image/layer-entry.ts";
import { noXattrs, timestampOf } from "../../image/layer-entry.ts";
import { keptXattrs } from "../../image/layer-xattrs.ts";
import type { FileEntry, FileTree } from "./file-entry.ts";

const readSize = 1 << 20;
/** Files up to this size are read by synchronous calls, as are names and attributes: of a local image, mostly in memory. */
const smallSize = 64 << 10;

/**
 * A root filesystem that is mounted read-only from layers and so can't change while it is read: what `get` saw is what
 * `read` opens, and no symlink can be swapped in between. Callers pass paths whose parents they have found
 * to be real directories (`resolveIn`), so that the kernel never follows a link of the tenant's; the last component is
 * opened with O_NOFOLLOW.
 */
export class RootView implements FileTree {
  readonly #root: string;
  readonly #pauses = new Pauses();

  constructor(root: string) {
    this.#root = root;
  }

  async get(path: ByteString): Promise<FileEntry | null> {
    await this.#pauses.take();
    const file = this.#host(path);
    let stats: BigIntStats | undefined;
    try {
      stats = lstatSync(file, { bigint: true, throwIfNoEntry: false });
    } catch (error) {
      if (["ENOTDIR", "ENAMETOOLONG"].includes((error as NodeJS.ErrnoException).code ?? "")) return null;
      throw error;
    }
    if (stats === undefined) return null;
    const type = stats.isFile()
      ? "file"
      : stats.isDirectory()
        ? "directory"
        : stats.isSymbolicLink()
          ? "symlink"
          : "other";
    return {
      type,
      mode: Number(stats.mode) & 0o7777,
      uid: Number(stats.uid),
      gid: Number(stats.gid),
      mtime: timestampOf(stats.mtimeNs),
      size: type === "file" ? Number(stats.size) : 0,
      target: type === "symlink" ? readlinkSync(file, { encoding: "latin1" }) : "",
      xattrs: type === "symlink" ? noXattrs : keptXattrs(readXattrs(file)),
    };
  }

  async list(path: ByteString): Promise<readonly ByteString[]> {
    await this.#pauses.take();
    return readdirSync(this.#host(path), { encoding: "latin1" }).sort();
  }

  /** In buffers no larger than the rest: a megabyte for each of many small files keeps the garbage collector busy. */
  async *read(path: ByteString, { size }: Pick<FileEntry, "size">): AsyncGenerator<Uint8Array, void, undefined> {
    if (size <= smallSize) {
      await this.#pauses.take();
      if (size > 0) yield readSmall(this.#host(path), size);
      return;
    }
    const file = await open(this.#host(path), openFlags);
    try {
      for (let done = 0; done < size; ) {
        const length = Math.min(readSize, size - done);
        const { bytesRead, buffer } = await file.read(Buffer.allocUnsafe(length), 0, length);
        if (bytesRead === 0) throw endsEarly(done, size);
        yield buffer.subarray(0, bytesRead);
        done += bytesRead;
      }
    } finally {
      await file.close();
    }
  }

  #host(path: ByteString): Buffer {
    return Buffer.from(`${this.#root}${path}`, "latin1");
  }
}

const openFlags = constants.O_RDONLY | constants.O_NOFOLLOW;

function readSmall(file: Buffer, size: number): Buffer {
  const fd = openSync(file, openFlags);
  try {
    const buffer = Buffer.allocUnsafe(size);
    for (let done = 0; done < size; ) {
      const bytesRead = readSync(fd, buffer, done, size - done, done);
      if (bytesRead === 0) throw endsEarly(done, size);
      done += bytesRead;
    }
    return buffer;
  } finally {
    closeSync(fd);
  }
}

function endsEarly(done: number, size: number): Error {
  return new Error(`a file of an image ends at byte ${String(done)} of ${String(size)}`);
}

/** The root of `FROM scratch`: an empty directory. */
export const emptyRoot: FileTree = {
  get: (path) =>
    Promise.resolve(
      path === "/"
        ? {
            type: "directory",
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: { seconds: 0, nanoseconds: 0 },
            size: 0,
            target: "",
            xattrs: noXattrs,
          }
        : null,
    ),
  list: () => Promise.resolve([]),
  read: () => {
    throw new Error("an empty root has no files");
  },
};
