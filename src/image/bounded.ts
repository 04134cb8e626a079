import { BerthError } from "../core/errors.ts";

/** The same bytes, as long as there are not more than so many. @throws BerthError `body_too_large`; the source's error. */
export async function* bounded(source: AsyncIterable<Uint8Array>, maxBytes: number): AsyncGenerator<Uint8Array, void> {
  let bytes = 0;
  for await (const chunk of source) {
    bytes += chunk.length;
    if (bytes > maxBytes) throw new BerthError("body_too_large", `An archive has at most ${String(maxBytes)} bytes.`);
    yield chunk;
  }
}
