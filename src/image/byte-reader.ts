/** Reads counted bytes from a stream of chunks. What is buffered is read without waiting. */
export class ByteReader {
  readonly #source: AsyncIterator<Uint8Array>;
  #chunk: Buffer = Buffer.alloc(0);
  #offset = 0;
  #before = 0;

  constructor(source: AsyncIterable<Uint8Array>) {
    this.#source = source[Symbol.asyncIterator]();
  }

  /** Bytes of the stream that have been read. */
  get position(): number {
    return this.#before + this.#offset;
  }

  /** `length` bytes when they are buffered in one piece, a view of them; otherwise undefined. */
  tryRead(length: number): Buffer | undefined {
    if (this.#chunk.length - this.#offset < length) return undefined;
    this.#offset += length;
    return this.#chunk.subarray(this.#offset - length, this.#offset);
  }

  /** `length` bytes, fewer only at the end of the stream. */
  async read(length: number): Promise<Buffer> {
    const whole = this.tryRead(length);
    if (whole !== undefined) return whole;
    const parts: Buffer[] = [];
    let missing = length;
    while (missing > 0) {
      const part = await this.readSome(missing);
      if (part === null) break;
      parts.push(part);
      missing -= part.length;
    }
    return Buffer.concat(parts);
  }

  /** 1 to `limit` bytes, a view; null at the end of the stream. */
  async readSome(limit: number): Promise<Buffer | null> {
    while (this.#offset === this.#chunk.length) {
      const next = await this.#source.next();
      if (next.done === true) return null;
      this.#before += this.#chunk.length;
      this.#chunk = Buffer.from(next.value.buffer, next.value.byteOffset, next.value.byteLength);
      this.#offset = 0;
    }
    const end = Math.min(this.#offset + limit, this.#chunk.length);
    const part = this.#chunk.subarray(this.#offset, end);
    this.#offset = end;
    return part;
  }

  /** Tells the source that no more will be read. */
  async close(): Promise<void> {
    await this.#source.return?.();
  }
}

/** The same bytes in chunks of at least `minimum`, the last one aside: what costs a call each then costs fewer calls. */
export async function* coalesce(
  source: AsyncIterable<Uint8Array>,
  minimum: number,
): AsyncGenerator<Uint8Array, void, undefined> {
  let parts: Uint8Array[] = [];
  let bytes = 0;
  for await (const chunk of source) {
    parts.push(chunk);
    bytes += chunk.length;
    if (bytes < minimum) continue;
    yield parts.length === 1 ? chunk : Buffer.concat(parts);
    parts = [];
    bytes = 0;
  }
  if (bytes > 0) yield Buffer.concat(parts);
}
