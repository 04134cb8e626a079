import { type FileHandle, open, stat } from "node:fs/promises";

const blockBytes = 65_536;
const newline = 10;

/** Yields the complete lines of a file that grows; knows when its writer began a new file in its place. */
export class LogFile {
  readonly #path: string;
  #file: FileHandle | null = null;
  #inode = 0;
  #offset = 0;
  #rest: Buffer = Buffer.alloc(0);

  constructor(path: string) {
    this.#path = path;
  }

  /** Passes over all but the last `count` wanted lines. To be called before anything is read. */
  async skipToLast(count: number, wanted: (line: string) => boolean): Promise<void> {
    const file = await this.#open();
    if (file !== null) this.#offset = await lastLines(file, count, wanted);
  }

  /** The lines that were completed since the last call. */
  async *lines(): AsyncGenerator<string> {
    const current = await stat(this.#path).catch(() => null);
    if (this.#file !== null && current !== null && current.ino !== this.#inode) {
      yield* this.#read(this.#file);
      await this.close();
    }
    const file = await this.#open();
    if (file !== null) yield* this.#read(file);
  }

  /** null: there is no such file yet. */
  async #open(): Promise<FileHandle | null> {
    if (this.#file !== null) return this.#file;
    this.#file = await open(this.#path, "r").catch(() => null);
    if (this.#file === null) return null;
    this.#inode = (await this.#file.stat()).ino;
    this.#offset = 0;
    this.#rest = Buffer.alloc(0);
    return this.#file;
  }

  /** Up to the size that the file has now: one that is written as fast as it is read has an end as well. */
  async *#read(file: FileHandle): AsyncGenerator<string> {
    const { size } = await file.stat();
    const chunk = Buffer.allocUnsafe(blockBytes);
    while (this.#offset < size) {
      const length = Math.min(chunk.length, size - this.#offset);
      const { bytesRead } = await file.read(chunk, 0, length, this.#offset);
      if (bytesRead === 0) return;
      this.#offset += bytesRead;
      const data = Buffer.concat([this.#rest, chunk.subarray(0, bytesRead)]);
      let start = 0;
      for (let end = data.indexOf(newline, start); end >= 0; end = data.indexOf(newline, start)) {
        yield data.toString("utf8", start, end);
        start = end + 1;
      }
      this.#rest = data.subarray(start);
    }
  }

  async close(): Promise<void> {
    await this.#file?.close();
    this.#file = null;
  }
}

/**
 * Where the last `count` wanted lines of a file begin, looked for in blocks from its end: time depends on what is asked
 * for and memory on nothing. What follows the last newline is still being written, and not counted.
 */
async function lastLines(file: FileHandle, count: number, wanted: (line: string) => boolean): Promise<number> {
  let { size: offset } = await file.stat();
  let found = 0;
  // Empty, or up to the newline of a line that begins in an earlier block.
  let rest: Buffer = Buffer.alloc(0);
  while (offset > 0) {
    const length = Math.min(blockBytes, offset);
    offset -= length;
    const { buffer, bytesRead } = await file.read(Buffer.alloc(length), 0, length, offset);
    const data = Buffer.concat([buffer.subarray(0, bytesRead), rest]);
    let end = data.lastIndexOf(newline);
    while (end >= 0) {
      if (found === count) return offset + end + 1;
      const before = end === 0 ? -1 : data.lastIndexOf(newline, end - 1);
      if (before < 0 && offset > 0) break;
      if (wanted(data.toString("utf8", before + 1, end))) found++;
      end = before;
    }
    rest = data.subarray(0, end + 1);
  }
  return 0;
}
