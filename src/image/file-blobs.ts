import { randomUUID } from "node:crypto";
import { closeSync, constants, fsync, lstatSync, lutimesSync, openSync, type Stats } from "node:fs";
import { chmod, chown, type FileHandle, mkdir, open, readdir, rm, stat } from "node:fs/promises";
import { dirname, join } from "node:path";
import type { Readable } from "node:stream";
import { promisify } from "node:util";
import { BerthError } from "../core/errors.ts";
import { digestPattern } from "../core/reference.ts";
import type { ByteRange, Bytes, Claim, ClusterStore, IncomingBlob, PutExpectation, StoredBlob } from "./blobs.ts";
import { digestHex } from "./digest.ts";
import { IncomingFile } from "./incoming-file.ts";

const chunk = 256 << 10;
const sync = promisify(fsync);
/** After so many bytes it is asked again whether there is room. */
const askedEvery = 64 << 20;

/**
 * Blobs in a directory: `sha256/<hex>`, and `tmp/` for what is being written. The unprivileged API owns the directory and
 * the root worker uses it too: what root writes is given to the directory's owner, and nothing in it is followed when it
 * is a symlink.
 */
export class FileBlobs implements ClusterStore {
  readonly #blobs: string;
  readonly #uploads: string;
  readonly #claim: Claim;
  readonly #requireRoom: (() => void) | null;
  #owner: Stats | null = null;

  /** @param requireRoom throws when the directory's disk has no room for what is put: see engine/host-disk.ts. */
  constructor(directory: string, claim: Claim = () => Promise.resolve(), requireRoom?: (directory: string) => void) {
    this.#blobs = join(directory, "sha256");
    this.#uploads = join(directory, "tmp");
    this.#claim = claim;
    this.#requireRoom = requireRoom === undefined ? null : () => requireRoom(directory);
  }

  async size(digest: string): Promise<number | null> {
    await this.#claim(digest);
    return sizeOf(this.#path(digest));
  }

  async open(digest: string, range?: ByteRange): Promise<Readable> {
    const file = await openBlob(this.#path(digest));
    if (file === null) throw new BerthError("not_found", `There is no blob ${digest}.`);
    return file.createReadStream({ highWaterMark: chunk, ...range });
  }

  async file(digest: string): Promise<FileHandle | null> {
    return openBlob(this.#path(digest));
  }

  async put(source: Bytes, expect: PutExpectation): Promise<StoredBlob> {
    const incoming = await this.#begin();
    try {
      const content = this.#requireRoom === null ? source : whileRoom(source, this.#requireRoom);
      await incoming.append(content, expect.maxBytes);
      return await this.#keep(incoming, expect);
    } finally {
      await incoming.close();
    }
  }

  async received(blob: Pick<IncomingBlob, "digest" | "sender">): Promise<number> {
    return (await stat(this.#partOf(blob)).catch(() => null))?.size ?? 0;
  }

  /** What came before is copied to a file of this attempt's own: an earlier one may still write to the old. */
  async receive(source: AsyncIterable<Uint8Array>, blob: IncomingBlob): Promise<void> {
    const { digest, sizeBytes, start } = blob;
    const part = this.#partOf(blob);
    const incoming = await this.#begin();
    try {
      const before = start === 0 ? null : await openBlob(part);
      if (before !== null) {
        await incoming.append(before.createReadStream({ highWaterMark: chunk, end: start - 1 }), start);
      }
      if (incoming.bytes < start) {
        throw new BerthError("invalid_state", `Of ${digest} ${incoming.bytes} bytes are here, and not ${start}.`);
      }
      try {
        await incoming.append(source, sizeBytes);
        if (incoming.bytes < sizeBytes) throw new BerthError("invalid_request", "The content ended early.");
      } catch (error) {
        if (incoming.bytes > start) await keepPart(incoming, part);
        throw error;
      }
      // Whole and wrong, it is nothing to go on with.
      await rm(part, { force: true });
      await this.#keep(incoming, { digest });
    } finally {
      await incoming.close();
    }
  }

  readElsewhere(): Promise<null> {
    return Promise.resolve(null);
  }

  writeElsewhere(): Promise<null> {
    return Promise.resolve(null);
  }

  async delete(digest: string): Promise<void> {
    await rm(this.#path(digest), { force: true });
  }

  async *list(): AsyncGenerator<string, void> {
    await this.#prepare();
    for (const name of await readdir(this.#blobs)) {
      const digest = `sha256:${name}`;
      if (digestPattern.test(digest)) yield digest;
    }
  }

  async tidy(olderThanMs: number): Promise<void> {
    await this.#prepare();
    await removeOld(this.#uploads, olderThanMs);
  }

  /** Removes blobs that were stored so long ago, except those with these digests. */
  async deleteOlder(olderThanMs: number, except: ReadonlyMap<string, unknown>): Promise<void> {
    await this.#prepare();
    await removeOld(this.#blobs, olderThanMs, (name) => except.has(`sha256:${name}`));
  }

  #path(digest: string): string {
    return join(this.#blobs, digestHex(digest));
  }

  #partOf({ digest, sender }: Pick<IncomingBlob, "digest" | "sender">): string {
    if (!/^\w{1,64}$/.test(sender)) throw new Error("a sender's name has letters that a file's may not have");
    return join(this.#uploads, `${digestHex(digest)}.${sender}`);
  }

  async #begin(): Promise<IncomingFile> {
    const owner = await this.#prepare();
    return new IncomingFile(join(this.#uploads, randomUUID()), process.getuid?.() === 0 ? owner : undefined);
  }

  async #keep(incoming: IncomingFile, expect: Omit<PutExpectation, "maxBytes">): Promise<StoredBlob> {
    const blob = { digest: incoming.finish(expect.digest), sizeBytes: incoming.bytes };
    const path = this.#path(blob.digest);
    expect.written?.(blob);
    const isHere = () => sizeOf(path) === blob.sizeBytes;
    const wasHere = isHere();
    const claimed = Promise.all([this.#claim(blob.digest), expect.confirm?.()]);
    // An unchanged context, for one, is there already; whether it still is counts once it is claimed.
    const here = wasHere && (await claimed, isHere());
    if (here) {
      // As if it had been stored now: what is old may go (deleteOlder).
      const now = new Date();
      lutimesSync(path, now, now);
    } else {
      await Promise.all([incoming.sync(), claimed]);
      await incoming.moveTo(path);
    }
    await syncDirectory(this.#blobs);
    return blob;
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

/** The source's bytes, as long as there is room for them. */
async function* whileRoom(source: Bytes, requireRoom: () => void): AsyncGenerator<Uint8Array, void> {
  requireRoom();
  let bytes = 0;
  for await (const part of source) {
    bytes += part.length;
    if (bytes > askedEvery) {
      requireRoom();
      bytes = 0;
    }
    yield part;
  }
}

/** Keeps what has come for the next attempt, if that can be done: why it broke off counts more. */
async function keepPart(incoming: IncomingFile, part: string): Promise<void> {
  try {
    await incoming.sync();
    await incoming.moveTo(part);
  } catch {
    // It begins anew then.
  }
}

/** Bytes of a file; null: there is none. A name that leads to one is none. */
function sizeOf(path: string): number | null {
  // Of a local file: waiting for a thread takes longer.
  const found = lstatSync(path, { throwIfNoEntry: false });
  return found?.isFile() === true ? found.size : null;
}

async function openBlob(path: string): Promise<FileHandle | null> {
  try {
    return await open(path, constants.O_RDONLY | constants.O_NOFOLLOW);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return null;
    throw error;
  }
}

async function removeOld(
  directory: string,
  olderThanMs: number,
  except: (name: string) => boolean = () => false,
): Promise<void> {
  for (const name of await readdir(directory)) {
    if (except(name)) continue;
    const path = join(directory, name);
    const written = await stat(path).catch(() => null);
    if (written !== null && Date.now() - written.mtimeMs > olderThanMs) await rm(path, { force: true });
  }
}

/** Renames are durable once their directory is. Only what may wait for the disk goes by a thread. */
async function syncDirectory(path: string): Promise<void> {
  const directory = openSync(path, "r");
  try {
    await sync(directory);
  } finally {
    closeSync(directory);
  }
}
