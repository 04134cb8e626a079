import { createHash, type Hash } from "node:crypto";
import { rename, rm } from "node:fs/promises";
import { BerthError } from "../core/errors.ts";
import { FileSink } from "./file-sink.ts";

/** A file that a blob's bytes are written to as they come, which becomes the blob or is removed. */
export class IncomingFile {
  readonly #path: string;
  readonly #sink: FileSink;
  readonly #hash: Hash = createHash("sha256");

  private constructor(path: string, sink: FileSink) {
    this.#path = path;
    this.#sink = sink;
  }

  /** `owner`: whom the file is given to, where that is not who runs. @throws BerthError `disk_full` */
  static async create(path: string, owner?: { uid: number; gid: number }): Promise<IncomingFile> {
    return new IncomingFile(path, await FileSink.create(path, 0o640, owner));
  }

  get bytes(): number {
    return this.#sink.position;
  }

  /** @throws BerthError `body_too_large` when there are more than `maxBytes` in all, `disk_full`; the source's error. */
  async append(source: AsyncIterable<Uint8Array>, maxBytes: number): Promise<void> {
    for await (const chunk of source) {
      if (this.bytes + chunk.length > maxBytes) {
        throw new BerthError("body_too_large", `The content has more than ${String(maxBytes)} bytes.`);
      }
      this.#hash.update(chunk);
      await this.#sink.write(chunk);
    }
  }

  /** The digest of all that came; nothing can be appended after it. @throws BerthError `digest_mismatch` */
  finish(expected?: string): string {
    const digest = `sha256:${this.#hash.digest("hex")}`;
    if (expected === undefined || digest === expected) return digest;
    throw new BerthError("digest_mismatch", `The content has the digest ${digest}, not ${expected}.`);
  }

  async sync(): Promise<void> {
    await this.#sink.sync();
  }

  async moveTo(path: string): Promise<void> {
    await rename(this.#path, path);
  }

  /** Closes the file, and removes it unless it was moved. */
  async close(): Promise<void> {
    await this.#sink.close();
    await rm(this.#path, { force: true });
  }
}
