import { createHash, type Hash, hash } from "node:crypto";
import { type FileHandle, open, unlink } from "node:fs/promises";
import { BerthError } from "../../core/errors.ts";
import { ByteReader } from "../../image/byte-reader.ts";
import { decompress } from "../../image/compress.ts";
import { type ByteString, type LayerEntry, noXattrs, showBytes } from "../../image/layer-entry.ts";
import { readTar } from "../../image/tar-read.ts";
import { type ContextEntry, ContextTree } from "./context-tree.ts";

/** What a context may hold; an upload's own size is limited where it is received. */
export interface ContextLimits {
  entries: number;
  /** Bytes of the files together, unpacked. */
  bytes: number;
}

export const defaultContextLimits: ContextLimits = { entries: 300_000, bytes: 16 * 2 ** 30 };

/** A build's context, read once: the tree for COPY, and the file that holds the content. */
export interface Context {
  tree: ContextTree;
  files: number;
  bytes: number;
  /** Time of the last change of an entry, in seconds since 1970. */
  newest: number;
  close(): Promise<void>;
}

/**
 * Reads an uploaded tar (plain, gzip or zstd) into an index. Files are written to one spool file at the path `keep`, which
 * is unlinked at once and goes with its handle; or `keep` is a file that holds the plain tar, and they stay in it: it is
 * the context's from then on. No name from the tar is ever used on the host.
 * @throws BerthError `invalid_context` when it is damaged, too large, or holds names that leave it or devices.
 */
export async function readContext(
  upload: AsyncIterable<Uint8Array>,
  keep: string | FileHandle,
  limits: ContextLimits = defaultContextLimits,
): Promise<Context> {
  const file = typeof keep === "string" ? await open(keep, "wx+", 0o600) : keep;
  try {
    if (typeof keep === "string") await unlink(keep);
    const tree = new ContextTree(file);
    const tar = new ByteReader(decompress(upload));
    const contents =
      typeof keep === "string" ? new SpoolWriter(file, limits.bytes) : new TarContents(tar, limits.bytes);
    let files = 0;
    let newest = 0;
    for await (const entry of readTar(tar)) {
      if (++files > limits.entries) throw invalid(`it has more than ${limits.entries} entries`);
      newest = Math.max(newest, entry.mtime.seconds);
      const components = checkedComponents(entry.path);
      const placed = await toContextEntry(entry, tree, contents);
      if (!tree.add(components, placed))
        throw invalid(`${showBytes(entry.path)} lies below something that is no directory`);
    }
    await contents.flush();
    return { tree, files, bytes: contents.bytes, newest, close: () => file.close() };
  } catch (error) {
    await file.close();
    if (error instanceof BerthError && error.code === "invalid_image") {
      throw new BerthError("invalid_context", `The build context is not a whole tar, gzip or zstd: ${error.message}`, {
        cause: error,
      });
    }
    throw error;
  }
}

function invalid(why: string): BerthError {
  return new BerthError("invalid_context", `The build context can't be used: ${why}.`);
}

function checkedComponents(path: ByteString): ByteString[] {
  if (path.startsWith("/")) throw invalid(`the name ${showBytes(path)} is absolute`);
  const parts = path.split("/").filter((part) => part !== "" && part !== ".");
  if (parts.includes("..")) throw invalid(`the name ${showBytes(path)} has a ".."`);
  if (parts.length > 256 || parts.some((part) => part.length > 255))
    throw invalid(`the name ${showBytes(path)} is too long`);
  if (path.includes("\0")) throw invalid(`the name ${showBytes(path)} has a NUL`);
  return parts;
}

async function toContextEntry(entry: LayerEntry, tree: ContextTree, contents: Contents): Promise<ContextEntry> {
  // Owners and attributes of the sender's machine mean nothing here: COPY makes files root's.
  const { mode, mtime } = entry;
  const common = { mode, mtime, xattrs: noXattrs, uid: 0, gid: 0, size: 0, offset: 0, sha256: "", target: "" };
  switch (entry.type) {
    case "file":
      return { ...common, type: "file", size: entry.size, ...(await contents.add(entry.content)) };
    case "directory":
      return { ...common, type: "directory" };
    case "symlink":
      if (entry.target.length > 4095) throw invalid(`the link ${showBytes(entry.path)} is too long`);
      return { ...common, mode: 0o777, type: "symlink", target: entry.target };
    case "hardlink": {
      const target = await tree.get(`/${checkedComponents(entry.target).join("/")}`);
      if (target?.type !== "file") throw invalid(`${showBytes(entry.path)} is a hard link to a file that is not there`);
      return target;
    }
    case "fifo":
    case "device":
      throw invalid(`${showBytes(entry.path)} is a ${entry.type}`);
  }
}

/** Takes the contents of files, one after the other; what each is, and where it is kept. */
interface Contents {
  /** Of all of them. */
  readonly bytes: number;
  add(content: LayerEntry["content"]): Promise<{ offset: number; sha256: string }>;
  flush(): Promise<void>;
}

/** The digest of what it is given, in hex. Most files come in one piece, and one call costs a quarter of what an object does. */
class ContentHash {
  #first: Uint8Array | null = null;
  #more: Hash | null = null;

  update(chunk: Uint8Array): void {
    if (this.#first === null) this.#first = chunk;
    else this.#more = (this.#more ?? createHash("sha256").update(this.#first)).update(chunk);
  }

  digest(): string {
    return this.#more?.digest("hex") ?? hash("sha256", this.#first ?? "", "hex");
  }
}

/** Leaves files where they are in the plain tar. */
class TarContents implements Contents {
  readonly #tar: ByteReader;
  readonly #limit: number;
  bytes = 0;

  constructor(tar: ByteReader, limit: number) {
    this.#tar = tar;
    this.#limit = limit;
  }

  async add(content: LayerEntry["content"]): Promise<{ offset: number; sha256: string }> {
    const offset = this.#tar.position;
    const digest = new ContentHash();
    for await (const chunk of content) {
      this.bytes += chunk.length;
      if (this.bytes > this.#limit) throw tooManyBytes(this.#limit);
      digest.update(chunk);
    }
    return { offset, sha256: digest.digest() };
  }

  flush(): Promise<void> {
    return Promise.resolve();
  }
}

/** Appends files to the spool through one buffer, so that many small files cost few writes. */
class SpoolWriter implements Contents {
  readonly #file: FileHandle;
  readonly #limit: number;
  #pending: Uint8Array[] = [];
  #pendingBytes = 0;
  bytes = 0;

  constructor(file: FileHandle, limit: number) {
    this.#file = file;
    this.#limit = limit;
  }

  async add(content: LayerEntry["content"]): Promise<{ offset: number; sha256: string }> {
    const offset = this.bytes;
    const digest = new ContentHash();
    for await (const chunk of content) {
      this.bytes += chunk.length;
      if (this.bytes > this.#limit) throw tooManyBytes(this.#limit);
      // A chunk is a view of a buffer that the reader may use again.
      const kept = Uint8Array.from(chunk);
      digest.update(kept);
      this.#pending.push(kept);
      this.#pendingBytes += kept.length;
      if (this.#pendingBytes >= 1 << 20) await this.flush();
    }
    return { offset, sha256: digest.digest() };
  }

  async flush(): Promise<void> {
    const all = Buffer.concat(this.#pending);
    this.#pending = [];
    this.#pendingBytes = 0;
    for (let done = 0; done < all.length; ) done += (await this.#file.write(all, done)).bytesWritten;
  }
}

function tooManyBytes(limit: number): BerthError {
  return invalid(`it has more than ${limit} bytes unpacked`);
}
