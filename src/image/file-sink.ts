import { type FileHandle, open } from "node:fs/promises";
import { diskError } from "./disk-error.ts";

const bufferSize = 1 << 20;
/** Buffers that nobody uses: making two of them for each file costs more (6 ms in the API) than writing a small file. */
const spares: Buffer[] = [];
const maxSpares = 8;
/** So many bytes after the last flush the next begins beside the writing, so that little is left to do at the end. */
const flushEvery = 32 << 20;

/**
 * Appends to a new file in writes of 1 MiB. While one buffer is being written the next is filled, so the caller waits only
 * when the disk is slower than it is.
 */
export class FileSink {
  readonly #file: FileHandle;
  #filling: Buffer = takeBuffer();
  #spare: Buffer | null = null;
  #filled = 0;
  #position = 0;
  #writing: Promise<void> = Promise.resolve();
  #flushed = 0;
  #flushing: Promise<void> = Promise.resolve();
  #closed = false;

  private constructor(file: FileHandle) {
    this.#file = file;
  }

  /** Creates the file; it must not exist. `owner`: whom it is given to, where that is not who runs. */
  static async create(path: string, mode: number, owner?: { uid: number; gid: number }): Promise<FileSink> {
    const file = await open(path, "wx", mode).catch(diskError);
    if (owner !== undefined) await file.chown(owner.uid, owner.gid);
    return new FileSink(file);
  }

  /** Bytes appended so far. */
  get position(): number {
    return this.#position;
  }

  async write(chunk: Uint8Array): Promise<void> {
    for (let offset = 0; offset < chunk.length; ) {
      const part = chunk.subarray(offset, offset + bufferSize - this.#filled);
      this.#filling.set(part, this.#filled);
      offset += part.length;
      await this.#advance(part.length);
    }
  }

  /** Zeros up to the next multiple of `unit` bytes. */
  async pad(unit: number): Promise<void> {
    await this.padTo(Math.ceil(this.#position / unit) * unit);
  }

  /** Zeros up to this position. */
  async padTo(position: number): Promise<void> {
    while (this.#position < position) {
      const length = Math.min(position - this.#position, bufferSize - this.#filled);
      this.#filling.fill(0, this.#filled, this.#filled + length);
      await this.#advance(length);
    }
  }

  /** Overwrites bytes that were appended before. */
  async writeAt(bytes: Uint8Array, position: number): Promise<void> {
    const start = this.#position - this.#filled;
    if (position >= start) {
      this.#filling.set(bytes, position - start);
      return;
    }
    await this.#drain();
    await this.#file.write(bytes, 0, bytes.length, position).catch(diskError);
  }

  /** Returns when the file has all that was written, for whoever opens it; not all of it is durable yet. */
  async writeOut(): Promise<void> {
    await this.#drain();
    await this.#flushing;
  }

  /** Makes all that was written durable. */
  async sync(): Promise<void> {
    await this.writeOut();
    await this.#file.datasync().catch(diskError);
  }

  /** Closes the file. What was not synced may be lost; who still writes meets an error. */
  async close(): Promise<void> {
    this.#closed = true;
    await Promise.allSettled([this.#writing, this.#flushing]);
    for (const buffer of [this.#filling, this.#spare]) {
      if (buffer?.length === bufferSize && spares.length < maxSpares) spares.push(buffer);
    }
    // Somebody else's from here on.
    this.#filling = Buffer.alloc(0);
    this.#spare = null;
    await this.#file.close();
  }

  async #advance(length: number): Promise<void> {
    this.#filled += length;
    this.#position += length;
    if (this.#filled === bufferSize) await this.#swap();
  }

  async #swap(): Promise<void> {
    await this.#writing;
    // Its buffers are about to be somebody else's.
    if (this.#closed) throw new Error("a file that is written to was closed");
    const full = this.#filling;
    const length = this.#filled;
    this.#writing = this.#writeAll(full.subarray(0, length), this.#position - length);
    // Seen by the next swap, flush or close; until then not an unhandled rejection.
    this.#writing.catch(() => undefined);
    this.#filling = this.#spare ?? takeBuffer();
    this.#spare = full;
    this.#filled = 0;
    if (this.#position - this.#flushed > flushEvery) this.#flushBeside();
  }

  async #drain(): Promise<void> {
    if (this.#filled > 0) await this.#swap();
    await this.#writing;
  }

  /** Begins a flush, after the one that perhaps still runs. */
  #flushBeside(): void {
    const before = this.#flushing;
    this.#flushed = this.#position;
    this.#flushing = before.then(() => this.#file.datasync()).catch(diskError);
    this.#flushing.catch(() => undefined);
  }

  async #writeAll(bytes: Buffer, position: number): Promise<void> {
    for (let done = 0; done < bytes.length; ) {
      const { bytesWritten } = await this.#file
        .write(bytes, done, bytes.length - done, position + done)
        .catch(diskError);
      done += bytesWritten;
    }
  }
}

function takeBuffer(): Buffer {
  return spares.pop() ?? Buffer.allocUnsafe(bufferSize);
}
