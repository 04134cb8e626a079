import { createHash, randomUUID } from "node:crypto";
import { constants, type Stats } from "node:fs";
import { chmod, chown, type FileHandle, mkdir, open, readdir, rename, rm, stat } from "node:fs/promises";
import { dirname, join } from "node:path";
import type { Readable } from "node:stream";
import { BerthError } from "../core/errors.ts";
import { digestPattern } from "../core/reference.ts";
import { digestHex } from "./digest.ts";
import { FileSink } from "./file-sink.ts";

export interface PutExpectation {
  /** The digest that the bytes must have; absent: whatever they have. */
  digest?: string;
  maxBytes: number;
  /** Awaited when the bytes are complete and their digest is right; if it throws, nothing is kept. */
  confirm?: () => Promise<void>;
}

/**
 * Content-addressed bytes. A blob appears whole and verified or not at all, never changes, and storing it again is
 * harmless. It does not know who may read what: that is the rows' business.
 */
export interface BlobStore {
  /** Bytes of a blob; null when it is not there. */
  size(digest: string): Promise<number | null>;
  /** The blob, or its bytes from `start` to `end`, both included. @throws BerthError `not_found`. */
  open(digest: string, range?: { start: number; end?: number }): Promise<Readable>;
  /** @throws BerthError `digest_mismatch`, `body_too_large`, `disk_full`, or the source's error. */
  put(source: AsyncIterable<Uint8Array>, expect: PutExpectation): Promise<{ digest: string; sizeBytes: number }>;
  /** Removes a blob; one that is not there is no error. */
  delete(digest: string): Promise<void>;
  /** The digests of all blobs, in no order. */
  list(): AsyncIterable<string>;
  /** Milliseconds since a blob was stored; 0 when it is not there. */
  ageMs(digest: string): Promise<number>;
  /** Removes what writers that died have left: unfinished blobs that were not written to for this long. */
  deleteAbandoned(olderThanMs: number): Promise<void>;
}

/**
 * Blobs in a directory: `sha256/<hex>`, and `tmp/` for what is being written. The unprivileged API owns the directory and
 * the root worker uses it too: what root writes is given to the directory's owner, and nothing in it is followed when it
 * is a symlink.
 */
export class FileBlobs implements BlobStore {
  readonly #blobs: string;
  readonly #uploads: string;
  #owner: Stats | null = null;

  constructor(directory: string) {
    this.#blobs = join(directory, "sha256");
    this.#uploads = join(directory, "tmp");
  }

  async size(digest: string): Promise<number | null> {
    const file = await this.#openBlob(digest);
    if (file === null) return null;
    try {
      return (await file.stat()).size;
    } finally {
      await file.close();
    }
  }

  async open(digest: string, range?: { start: number; end?: number }): Promise<Readable> {
    const file = await this.#openBlob(digest);
    if (file === null) throw new BerthError("not_found", `There is no blob ${digest}.`);
    return file.createReadStream({ highWaterMark: 1 << 20, ...range });
  }

  async put(source: AsyncIterable<Uint8Array>, expect: PutExpectation): Promise<{ digest: string; sizeBytes: number }> {
    const owner = await this.#prepare();
    const temporary = join(this.#uploads, randomUUID());
    const sink = await FileSink.create(temporary, 0o640, process.getuid?.() === 0 ? owner : undefined);
    try {
      const hash = createHash("sha256");
      for await (const chunk of source) {
        if (sink.position + chunk.length > expect.maxBytes) {
          throw new BerthError("body_too_large", `The content has more than ${String(expect.maxBytes)} bytes.`);
        }
        hash.update(chunk);
        await sink.write(chunk);
      }
      const digest = `sha256:${hash.digest("hex")}`;
      if (expect.digest !== undefined && digest !== expect.digest) {
        throw new BerthError("digest_mismatch", `The content has the digest ${digest}, not ${expect.digest}.`);
      }
      await Promise.all([sink.sync(), expect.confirm?.()]);
      await rename(temporary, join(this.#blobs, digestHex(digest)));
      await syncDirectory(this.#blobs);
      return { digest, sizeBytes: sink.position };
    } finally {
      await sink.close();
      // Renamed by now, unless something failed.
      await rm(temporary, { force: true });
    }
  }

  async delete(digest: string): Promise<void> {
    await rm(join(this.#blobs, digestHex(digest)), { force: true });
  }

  async ageMs(digest: string): Promise<number> {
    const blob = await stat(join(this.#blobs, digestHex(digest))).catch(() => null);
    return blob === null ? 0 : Date.now() - blob.mtimeMs;
  }

  async *list(): AsyncGenerator<string, void> {
    await this.#prepare();
    for (const name of await readdir(this.#blobs)) {
      const digest = `sha256:${name}`;
      if (digestPattern.test(digest)) yield digest;
    }
  }

  async deleteAbandoned(olderThanMs: number): Promise<void> {
    await this.#prepare();
    for (const name of await readdir(this.#uploads)) {
      const path = join(this.#uploads, name);
      const written = await stat(path).catch(() => null);
      if (written !== null && Date.now() - written.mtimeMs > olderThanMs) await rm(path, { force: true });
    }
  }

  async #openBlob(digest: string): Promise<FileHandle | null> {
    try {
      return await open(join(this.#blobs, digestHex(digest)), constants.O_RDONLY | constants.O_NOFOLLOW);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "ENOENT") return null;
      throw error;
    }
  }

  /** Makes the directories when they are missing. Returns the owner of the store. */
  async #prepare(): Promise<Stats> {
    if (this.#owner !== null) return this.#owner;
    await mkdir(dirname(this.#blobs), { recursive: true });
    const owner = await stat(dirname(this.#blobs));
    for (const directory of [this.#blobs, this.#uploads]) {
      const made = await mkdir(directory, { recursive: true });
      if (made === undefined) continue;
      await chmod(directory, 0o750);
      if (process.getuid?.() === 0) await chown(directory, owner.uid, owner.gid);
    }
    this.#owner = owner;
    return owner;
  }
}

/** Renames are durable once their directory is. */
export async function syncDirectory(path: string): Promise<void> {
  const directory = await open(path, "r");
  try {
    await directory.sync();
  } finally {
    await directory.close();
  }
}
