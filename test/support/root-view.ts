import { type BigIntStats, lstatSync, readdirSync, readlinkSync } from "node:fs";
import { open } from "node:fs/promises";
import { Pauses } from "../../src/core/pauses.ts";
import type { FileEntry, FileTree } from "../../src/engine/build/file-entry.ts";
import { readXattrs } from "../../src/image/file-xattrs.ts";
import type { ByteString } from "../../src/image/layer-entry.ts";
import { noXattrs, timestampOf } from "../../src/image/layer-entry.ts";
import { keptXattrs } from "../../src/image/layer-xattrs.ts";
import { openFlags, readSmallFile, smallFile } from "../../src/image/small-file.ts";

const readSize = 1 << 20;

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
    if (size <= smallFile) {
      await this.#pauses.take();
      const content = readSmallFile(this.#host(path), size);
      if (content.length < size) throw endsEarly(content.length, size);
      if (size > 0) yield content;
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

function endsEarly(done: number, size: number): Error {
  return new Error(`a file of an image ends at byte ${String(done)} of ${String(size)}`);
}
