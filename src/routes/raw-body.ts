import { BerthError } from "../core/errors.ts";

/** What bounds bodies while they are read: bytes of one and of all together, milliseconds of one. */
export interface BodyLimits {
  maxBytes: number;
  maxBytesAtOnce: number;
  maxMs: number;
}

/**
 * Reads bodies byte for byte, of clients for whom nobody has vouched yet: however many send at once, and however slowly,
 * what they fill is bounded.
 */
export class RawBodies {
  readonly #limits: BodyLimits;
  #held = 0;

  constructor(limits: BodyLimits) {
    this.#limits = limits;
  }

  /**
   * @throws BerthError `body_too_large`; `too_many_requests` when all together are too much; `invalid_request` when it came
   * too slowly
   */
  async read(request: Request): Promise<Buffer> {
    const { maxBytes, maxBytesAtOnce, maxMs } = this.#limits;
    const tooLarge = new BerthError("body_too_large", `The body may have ${String(maxBytes)} bytes.`);
    if (Number(request.headers.get("content-length") ?? 0) > maxBytes) throw tooLarge;
    const reader = (request.body as ReadableStream<Uint8Array> | null)?.getReader();
    if (reader === undefined) return Buffer.alloc(0);
    const deadline = AbortSignal.timeout(maxMs);
    const cancel = () => void reader.cancel().catch(() => undefined);
    deadline.addEventListener("abort", cancel);
    const parts: Uint8Array[] = [];
    let bytes = 0;
    try {
      for (let next = await reader.read(); !next.done; next = await reader.read()) {
        bytes += next.value.byteLength;
        this.#held += next.value.byteLength;
        if (bytes > maxBytes) throw tooLarge;
        if (this.#held > maxBytesAtOnce) throw new BerthError("too_many_requests", "Too much is being sent at once.");
        parts.push(next.value);
      }
      if (!deadline.aborted) return Buffer.concat(parts);
      throw new BerthError("invalid_request", `The body has to come within ${String(maxMs / 1000)} seconds.`);
    } finally {
      this.#held -= bytes;
      deadline.removeEventListener("abort", cancel);
      cancel();
    }
  }
}
