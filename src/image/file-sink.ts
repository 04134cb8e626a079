import { type FileHandle, open } from "node:fs/promises";
import { diskError } from "./disk-error.ts";

const bufferSize = 1 << 20;

/**
 * Appends to a new file in writes of 1 MiB. While one buffer is being written the next is filled, so the caller waits only
 * when the disk is slower than it is.
 */
export class FileSink {
  readonly #file: FileHandle;
  #filling: Buffer = Buffer.allocUnsafe(bufferSize);
  #spare: Buffer = Buffer.allocUnsafe(bufferSize);
  #filled = 0;
  #position = 0;
  #writing: Promise<void> = Promise.resolve();

  private constructor(file: FileHandle) {
    this.#file = file;
  }

  /** Creates the file; it must not exist. */
  static async create(path: string, mode: number): Promise<FileSink> {
    return new FileSink(await open(path, "wx", mode).catch(diskError));
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
    await this.#flush();
    await this.#file.write(bytes, 0, bytes.length, position).catch(diskError);
  }

  /** Makes the file durable and closes it. */
  async close(): Promise<void> {
    await this.#flush();
    await this.#file.datasync().catch(diskError);
    await this.#file.close();
  }

  /** Closes the file as it is; for one that is to be deleted. */
  async abandon(): Promise<void> {
    await this.#writing.catch(() => undefined);
    await this.#file.close();
  }

  async #advance(length: number): Promise<void> {
    this.#filled += length;
    this.#position += length;
    if (this.#filled === bufferSize) await this.#swap();
  }

  async #swap(): Promise<void> {
    await this.#writing;
    const full = this.#filling;
    const length = this.#filled;
    this.#writing = this.#writeAll(full.subarray(0, length), this.#position - length);
    // Seen by the next swap, flush or close; until then not an unhandled rejection.
    this.#writing.catch(() => undefined);
    this.#filling = this.#spare;
    this.#spare = full;
    this.#filled = 0;
  }

  async #flush(): Promise<void> {
    if (this.#filled > 0) await this.#swap();
    await this.#writing;
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
