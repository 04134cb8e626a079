import type { Location, Source } from "./source.ts";

/** Where a run of a passage's characters stands in the source; the run goes on to the next segment's offset. */
interface Segment {
  offset: number;
  line: number;
  column: number;
}

/**
 * A text that was joined from continued lines and still knows where each character came from.
 * Slices share the segments of the whole.
 */
export class Passage {
  readonly text: string;
  readonly source: Source;
  readonly #segments: readonly Segment[];
  /** Offset of `text` within the whole passage that the segments describe. */
  readonly #start: number;

  constructor(text: string, source: Source, segments: readonly Segment[], start = 0) {
    this.text = text;
    this.source = source;
    this.#segments = segments;
    this.#start = start;
  }

  /** The place of the character at `offset` (of this passage's text). */
  at(offset = 0): Location {
    const target = this.#start + offset;
    let low = 0;
    let high = this.#segments.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if ((this.#segments[middle]?.offset ?? 0) <= target) low = middle;
      else high = middle - 1;
    }
    const segment = this.#segments[low] ?? { offset: 0, line: 1, column: 1 };
    return { source: this.source, line: segment.line, column: segment.column + target - segment.offset };
  }

  slice(from: number, to: number = this.text.length): Passage {
    return new Passage(this.text.slice(from, to), this.source, this.#segments, this.#start + from);
  }

  /** Without white space at both ends. */
  trim(): Passage {
    const start = this.text.length - this.text.trimStart().length;
    return this.slice(start, Math.max(start, this.text.trimEnd().length));
  }
}
