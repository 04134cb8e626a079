import { createHash } from "node:crypto";
import type { FileHandle } from "node:fs/promises";
import type { IncomingMessage } from "node:http";
import { Readable } from "node:stream";
import { BerthError } from "../core/errors.ts";
import type { BlobStore, ByteRange, Bytes, PutExpectation, StoredBlob } from "./blobs.ts";
import { type FarBlobs, passing } from "./far-blobs.ts";
import type { FileBlobs } from "./file-blobs.ts";
import { type BreakingSource, resumed } from "./resumed.ts";
import type { Retry } from "./retry.ts";

/**
 * Blobs that are kept on other machines. What is stored is written to a directory here first, so that its digest is known
 * and sending can begin again where it broke off; for a while it is read from there too.
 */
export class CachedBlobs implements BlobStore {
  protected readonly near: FileBlobs;
  readonly #far: FarBlobs;
  readonly #retry: Retry;
  /** What is being sent, by digest: of several writers of one blob one sends it, and it stays here meanwhile. */
  readonly #sending = new Map<string, Promise<void>>();

  constructor(near: FileBlobs, far: FarBlobs, retry: Retry) {
    this.near = near;
    this.#far = far;
    this.#retry = retry;
  }

  async size(digest: string): Promise<number | null> {
    return this.#far.size(digest);
  }

  async open(digest: string, range?: ByteRange): Promise<Readable> {
    const copy = await this.#openNear(digest, range);
    if (copy !== null) return copy;
    const abort = new AbortController();
    const { signal } = abort;
    const start = range?.start ?? 0;
    const read = async (at: number): Promise<IncomingMessage> => {
      const response = await this.#far.read(digest, { ...range, start: at }, signal);
      if (response === null) throw new BerthError("not_found", `There is no blob ${digest}.`);
      return response;
    };
    // Whether there is such a blob, and how much of it, is known before the stream is.
    let first: IncomingMessage | null = await this.#retry.run(signal, () => read(start));
    const span = { start, end: start + Number(first.headers["content-length"]) };
    const source: BreakingSource = {
      read: async (at) => {
        const response = first ?? (await read(at));
        first = null;
        return response;
      },
      broken: passing,
    };
    const bytes = resumed(source, span, this.#retry, signal);
    const stream = Readable.from(range === undefined ? verified(bytes, digest) : bytes, { objectMode: false });
    // Also what waits for a silent server ends with its reader.
    return stream.once("close", () => abort.abort(new Error("the reader is gone")));
  }

  file(digest: string): Promise<FileHandle | null> {
    return this.near.file(digest);
  }

  async put(source: Bytes, expect: PutExpectation): Promise<StoredBlob> {
    const stored = await this.near.put(source, expect);
    await this.forward(stored);
    return stored;
  }

  async tidy(olderThanMs: number): Promise<void> {
    await this.near.tidy(olderThanMs);
    await this.near.deleteOlder(olderThanMs, this.#sending);
  }

  /** Sends what is in the directory to where blobs are kept. */
  protected async forward(blob: StoredBlob): Promise<void> {
    const { digest } = blob;
    const send = () => this.#far.send({ ...blob, open: (range) => this.near.open(digest, range) });
    const sent = this.#sending.get(digest) ?? send().finally(() => this.#sending.delete(digest));
    this.#sending.set(digest, sent);
    await sent;
  }

  async #openNear(digest: string, range?: ByteRange): Promise<Readable | null> {
    try {
      return await this.near.open(digest, range);
    } catch (error) {
      if (error instanceof BerthError && error.code === "not_found") return null;
      throw error;
    }
  }
}

/** The source's bytes; they must have this digest. */
async function* verified(source: AsyncIterable<Uint8Array>, digest: string): AsyncGenerator<Uint8Array, void> {
  const hash = createHash("sha256");
  for await (const chunk of source) {
    hash.update(chunk);
    yield chunk;
  }
  const found = `sha256:${hash.digest("hex")}`;
  if (found !== digest) throw new BerthError("digest_mismatch", `The blob ${digest} came as ${found}.`);
}
