import { createHash, type Hash, hash } from "node:crypto";
import { type FileHandle, open, unlink } from "node:fs/promises";
import { BerthError } from "../../core/errors.ts";
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
 * Reads an uploaded tar (plain, gzip or zstd) into an index and one spool file at `spoolPath`, which is unlinked at once
 * and goes with its handle. No name from the tar is ever used on the host.
 * @throws BerthError `invalid_context` when it is damaged, too large, or holds names that leave it or devices.
 */
export async function readContext(
  upload: AsyncIterable<Uint8Array>,
  spoolPath: string,
  limits: ContextLimits = defaultContextLimits,
): Promise<Context> {
  const spool = await open(spoolPath, "wx+", 0o600);
  try {
    await unlink(spoolPath);
    const tree = new ContextTree(spool);
    const writer = new SpoolWriter(spool, limits.bytes);
    let files = 0;
    let newest = 0;
    for await (const entry of readTar(decompress(upload))) {
      if (++files > limits.entries) throw invalid(`it has more than ${limits.entries} entries`);
      newest = Math.max(newest, entry.mtime.seconds);
      const components = checkedComponents(entry.path);
      const placed = await toContextEntry(entry, tree, writer);
      if (!tree.add(components, placed))
        throw invalid(`${showBytes(entry.path)} lies below something that is no directory`);
    }
    await writer.flush();
    return { tree, files, bytes: writer.bytes, newest, close: () => spool.close() };
  } catch (error) {
    await spool.close();
    if (error instanceof BerthError && error.code === "invalid_image") {
      throw new BerthError("invalid_context", `The build context is not a whole tar, gzip or zstd: ${error.message}`, {
        cause: error,
      });
    }
    throw error;
  }
}

const noBytes = new Uint8Array();

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

async function toContextEntry(entry: LayerEntry, tree: ContextTree, writer: SpoolWriter): Promise<ContextEntry> {
  // Owners and attributes of the sender's machine mean nothing here: COPY makes files root's.
  const { mode, mtime } = entry;
  const common = { mode, mtime, xattrs: noXattrs, uid: 0, gid: 0, size: 0, offset: 0, sha256: "", target: "" };
  switch (entry.type) {
    case "file":
      return { ...common, type: "file", size: entry.size, ...(await writer.append(entry.content)) };
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

/** Appends files to the spool through one buffer, so that many small files cost few writes. */
class SpoolWriter {
  readonly #file: FileHandle;
  readonly #limit: number;
  #pending: Uint8Array[] = [];
  #pendingBytes = 0;
  bytes = 0;

  constructor(file: FileHandle, limit: number) {
    this.#file = file;
    this.#limit = limit;
  }

  async append(content: LayerEntry["content"]): Promise<{ offset: number; sha256: string }> {
    const offset = this.bytes;
    let first: Uint8Array = noBytes;
    let more: Hash | null = null;
    for await (const chunk of content) {
      this.bytes += chunk.length;
      if (this.bytes > this.#limit) throw invalid(`it has more than ${this.#limit} bytes unpacked`);
      // A chunk is a view of a buffer that the reader may use again.
      const kept = Uint8Array.from(chunk);
      if (first === noBytes) first = kept;
      else more = (more ?? createHash("sha256").update(first)).update(kept);
      this.#pending.push(kept);
      this.#pendingBytes += kept.length;
      if (this.#pendingBytes >= 1 << 20) await this.flush();
    }
    // Most files come in one piece, and one call costs a quarter of what an object does.
    return { offset, sha256: more === null ? hash("sha256", first, "hex") : more.digest("hex") };
  }

  async flush(): Promise<void> {
    const all = Buffer.concat(this.#pending);
    this.#pending = [];
    this.#pendingBytes = 0;
    for (let done = 0; done < all.length; ) done += (await this.#file.write(all, done)).bytesWritten;
  }
}
