import { createHash, type Hash } from "node:crypto";
import { rename, rm } from "node:fs/promises";
import { BerthError } from "../core/errors.ts";
import type { Bytes } from "./blobs.ts";
import { FileSink } from "./file-sink.ts";

/** Up to so many bytes are held until it is known that they must be kept: much of what is small is there already. */
const heldBytes = 256 << 10;

/** What comes of a blob, and the file that it is written to, which becomes the blob or is removed. */
export class IncomingFile {
  readonly #path: string;
  readonly #owner: { uid: number; gid: number } | undefined;
  readonly #hash: Hash = createHash("sha256");
  #held: Uint8Array[] = [];
  /** null: all that came is held. */
  #sink: Promise<FileSink> | null = null;
  #bytes = 0;

  /** @param owner whom the file is given to, where that is not who runs */
  constructor(path: string, owner?: { uid: number; gid: number }) {
    this.#path = path;
    this.#owner = owner;
  }

  get bytes(): number {
    return this.#bytes;
  }

  /** @throws BerthError `body_too_large` when there are more than `maxBytes` in all, `disk_full`; the source's error. */
  async append(source: Bytes, maxBytes: number): Promise<void> {
    for await (const chunk of source) {
      if (this.#bytes + chunk.length > maxBytes) {
        throw new BerthError("body_too_large", `The content has more than ${String(maxBytes)} bytes.`);
      }
      this.#hash.update(chunk);
      this.#bytes += chunk.length;
      if (this.#sink !== null || this.#bytes > heldBytes) await (await this.#file()).write(chunk);
      // A chunk may be a view of a buffer that its source uses again.
      else this.#held.push(Uint8Array.from(chunk));
    }
  }

  /** The digest of all that came; nothing can be appended after it. @throws BerthError `digest_mismatch` */
  finish(expected?: string): string {
    const digest = `sha256:${this.#hash.digest("hex")}`;
    if (expected === undefined || digest === expected) return digest;
    throw new BerthError("digest_mismatch", `The content has the digest ${digest}, not ${expected}.`);
  }

  /** Makes the file, and all that came, durable. @throws BerthError `disk_full` */
  async sync(): Promise<void> {
    await (await this.#file()).sync();
  }

  /** Gives the file, which `sync` has made, its place. */
  async moveTo(path: string): Promise<void> {
    await rename(this.#path, path);
  }

  /** Closes the file, and removes it unless it was moved; also while it is being made or synced. */
  async close(): Promise<void> {
    const sink = await this.#sink?.catch(() => null);
    if (sink == null) return;
    await sink.close();
    await rm(this.#path, { force: true });
  }

  /** The file, with what was held so far. */
  #file(): Promise<FileSink> {
    this.#sink ??= this.#make();
    return this.#sink;
  }

  async #make(): Promise<FileSink> {
    const sink = await FileSink.create(this.#path, 0o640, this.#owner);
    // Less than the sink's buffer, so that nothing can fail here.
    for (const chunk of this.#held) await sink.write(chunk);
    this.#held = [];
    return sink;
  }
}
