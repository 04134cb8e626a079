/** Content is held in pieces of so many bytes, none of which a file begins in one and ends in another. */
const pieceBytes = 64 << 10;

/**
 * The contents of small files, close together. A buffer for each would take many times their bytes: it keeps all of the 8 KiB
 * that it is cut from.
 */
export class SmallContents {
  readonly #pieces: Buffer[] = [];
  #end = 0;
  #bytes = 0;

  /** Of all contents. */
  get bytes(): number {
    return this.#bytes;
  }

  /**
   * Takes a content of `size` bytes, which is not larger than a piece. Returns where it is.
   * @throws RangeError when it has not as many
   */
  async add(content: AsyncIterable<Uint8Array> | Iterable<Uint8Array>, size: number): Promise<number> {
    const left = this.#pieces.length * pieceBytes - this.#end;
    if (size > left) {
      this.#end += left;
      this.#pieces.push(Buffer.allocUnsafeSlow(pieceBytes));
    }
    const place = this.#end;
    const bytes = this.at(place, size);
    let filled = 0;
    for await (const chunk of content) {
      bytes.set(chunk, filled);
      filled += chunk.length;
    }
    if (filled < size) throw new RangeError("a file has less content than its size says");
    this.#end += size;
    this.#bytes += size;
    return place;
  }

  /** A view of the content of so many bytes that was given this place. */
  at(place: number, size: number): Buffer {
    const start = place % pieceBytes;
    return (this.#pieces[(place - start) / pieceBytes] ?? Buffer.alloc(0)).subarray(start, start + size);
  }
}
