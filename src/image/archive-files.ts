import { buffer } from "node:stream/consumers";
import { BerthError } from "../core/errors.ts";
import type { BlobStore, StoredBlob } from "./blobs.ts";
import { bounded } from "./bounded.ts";
import { coalesce } from "./byte-reader.ts";
import { compress, decompress, detectCompression } from "./compress.ts";
import { maxDocumentBytes } from "./document.ts";
import { type ByteString, type LayerEntry, showBytes } from "./layer-entry.ts";
import { readTar } from "./tar-read.ts";

/** An archive of images has a file for each layer and a few documents; Docker's oldest form three files a layer. */
const maxFiles = 10_000;
/** How much of a file is looked at to see whether it is compressed. */
const startBytes = 4;
const maxLinks = 8;
/** All documents of an archive together: each takes many times its size while it is used. */
const maxDocumentsBytes = 4 * maxDocumentBytes;

/** A file of an archive, in the store. `compression`: as its first bytes are. */
export interface ArchivedFile extends StoredBlob {
  compression: "none" | "gzip" | "zstd";
}

/** What an archive of images has, by path: all of it is in the store, under digests that were made of the bytes that came. */
export class ArchiveFiles {
  readonly #blobs: BlobStore;
  readonly #files = new Map<ByteString, ArchivedFile>();
  readonly #links = new Map<ByteString, ByteString>();
  readonly #digests = new Map<string, ArchivedFile>();
  #entries = 0;
  #readBytes = 0;

  private constructor(blobs: BlobStore) {
    this.#blobs = blobs;
  }

  /**
   * Reads a tar, plain or compressed, and stores its files as they come.
   * @param maxBytes of the archive as it is sent, and of what it unpacks to
   * @throws BerthError `invalid_archive`, `body_too_large`, `digest_mismatch`, `disk_full`, or the source's error.
   */
  static async store(archive: AsyncIterable<Uint8Array>, blobs: BlobStore, maxBytes: number): Promise<ArchiveFiles> {
    const files = new ArchiveFiles(blobs);
    try {
      for await (const entry of readTar(bounded(decompress(bounded(archive, maxBytes)), maxBytes)))
        await files.#add(entry);
    } catch (error) {
      if (!(error instanceof BerthError) || error.code !== "invalid_image") throw error;
      throw new BerthError("invalid_archive", `The archive is no whole tar: ${error.message}`, { cause: error });
    }
    return files;
  }

  /** The file at a path, links followed; null: there is none. */
  at(path: ByteString): ArchivedFile | null {
    let name = clean(path);
    for (let depth = 0; depth < maxLinks; depth++) {
      const file = this.#files.get(name);
      if (file !== undefined) return file;
      const target = this.#links.get(name);
      if (target === undefined) return null;
      name = target;
    }
    return null;
  }

  /** The file with these bytes, if the archive itself has it: what others have stored is not the sender's. */
  byDigest(digest: string): ArchivedFile | null {
    return this.#digests.get(digest) ?? null;
  }

  /** A small file's bytes. @throws BerthError `invalid_archive` when it, or all that was read, is larger than documents are. */
  async read(file: ArchivedFile, what: string): Promise<Buffer> {
    if (file.sizeBytes > maxDocumentBytes) {
      throw new BerthError("invalid_archive", `The archive's ${what} is larger than 4 MiB.`);
    }
    this.#readBytes += file.sizeBytes;
    if (this.#readBytes > maxDocumentsBytes) {
      throw new BerthError("invalid_archive", "The archive's manifests and configs are larger than 16 MiB together.");
    }
    return buffer(await this.#blobs.open(file.digest));
  }

  async #add(entry: LayerEntry): Promise<void> {
    if (!["file", "symlink", "hardlink"].includes(entry.type)) return;
    // Also those that take another's place: each is written to the disk.
    if (++this.#entries > maxFiles) {
      throw new BerthError("invalid_archive", `The archive has more than ${String(maxFiles)} files and links.`);
    }
    const path = clean(entry.path);
    if (entry.type === "symlink")
      this.#links.set(path, clean(`${path.slice(0, path.lastIndexOf("/") + 1)}${entry.target}`));
    if (entry.type === "hardlink") this.#links.set(path, clean(entry.target));
    if (entry.type !== "file") return;
    const file = await this.#store(path, entry);
    this.#files.set(path, file);
    this.#digests.set(file.digest, file);
  }

  async #store(path: ByteString, entry: LayerEntry): Promise<ArchivedFile> {
    const [, hex] = /^blobs\/sha256\/([0-9a-f]{64})$/.exec(path) ?? [];
    const content = coalesce(chunksOf(entry.content), startBytes)[Symbol.asyncIterator]();
    const first = await content.next();
    const start = first.done === true ? Buffer.alloc(0) : first.value;
    const compression = detectCompression(start);
    const whole = (async function* (): AsyncGenerator<Uint8Array, void> {
      if (start.length > 0) yield start;
      for (let next = await content.next(); next.done !== true; next = await content.next()) yield next.value;
    })();
    if (hex !== undefined) {
      return { ...(await this.#put(whole, entry.size, `sha256:${hex}`)), compression };
    }
    // Docker's older form has plain layers, under names of their own.
    const isLayer = compression === "none" && path.endsWith(".tar");
    if (!isLayer) return { ...(await this.#put(whole, entry.size)), compression };
    return { ...(await this.#put(compress(whole, "gzip"), Number.MAX_SAFE_INTEGER)), compression: "gzip" };
  }

  #put(content: AsyncIterable<Uint8Array>, maxBytes: number, digest?: string): Promise<StoredBlob> {
    return this.#blobs.put(content, { maxBytes, ...(digest === undefined ? {} : { digest }) });
  }
}

/** A path without `.`, `..` and empty components: one that leads out of the archive leads to its root. */
function clean(path: ByteString): ByteString {
  if (path.length > 4096) throw new BerthError("invalid_archive", `The name ${showBytes(path)} is too long.`);
  const parts: ByteString[] = [];
  for (const part of path.split("/")) {
    if (part === "..") parts.pop();
    else if (part !== "" && part !== ".") parts.push(part);
  }
  return parts.join("/");
}

async function* chunksOf(content: LayerEntry["content"]): AsyncGenerator<Uint8Array, void> {
  for await (const chunk of content) yield chunk;
}
