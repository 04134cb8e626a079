import { pipeline, Readable, type Transform } from "node:stream";
import { constants, createGunzip, createGzip, createZstdCompress, createZstdDecompress } from "node:zlib";
import { BerthError } from "../core/errors.ts";

export type Compression = "none" | "gzip" | "zstd";

/**
 * With zlib's default of 16 KiB a 87 MB layer takes 1150 ms to gunzip, from 128 KiB on half of that (measured); larger ones
 * gain nothing and leave more to the garbage collector.
 */
const chunkSize = 256 << 10;

/** What the first bytes of a stream say: RFC 1952 gzip, RFC 8878 zstd (also its skippable frames), or neither. */
export function detectCompression(start: Uint8Array): Compression {
  const [a, b, c, d] = start;
  if (a === 0x1f && b === 0x8b) return "gzip";
  if (a === 0x28 && b === 0xb5 && c === 0x2f && d === 0xfd) return "zstd";
  if (a !== undefined && (a & 0xf0) === 0x50 && b === 0x2a && c === 0x4d && d === 0x18) return "zstd";
  return "none";
}

/**
 * The plain bytes of a stream that is gzip, zstd or plain already. It does not bound them: whoever reads counts.
 * @throws BerthError `invalid_image` when the compressed data is damaged; an error of the source as it is.
 */
export async function* decompress(source: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array, void, undefined> {
  const iterator = source[Symbol.asyncIterator]();
  const first: Uint8Array[] = [];
  for (let bytes = 0; bytes < 4; ) {
    const next = await iterator.next();
    if (next.done === true) break;
    first.push(next.value);
    bytes += next.value.length;
  }
  const start = Buffer.concat(first);
  const whole = replay(start, iterator);
  switch (detectCompression(start)) {
    case "gzip":
      yield* through(whole, createGunzip({ chunkSize }));
      break;
    case "zstd":
      // Windows of more than 128 MiB would let a tenant choose how much memory is taken; no known builder uses them.
      yield* through(whole, createZstdDecompress({ chunkSize, params: { [constants.ZSTD_d_windowLogMax]: 27 } }));
      break;
    case "none":
      yield* whole;
  }
}

/** Compresses so that the same bytes give the same result (gzip with no name and no time in its header). */
export function compress(
  source: AsyncIterable<Uint8Array>,
  compression: Exclude<Compression, "none">,
): AsyncGenerator<Uint8Array, void, undefined> {
  return through(
    source,
    compression === "gzip" ? createGzip({ chunkSize, level: 3 }) : createZstdCompress({ chunkSize }),
  );
}

async function* replay(
  start: Uint8Array,
  rest: AsyncIterator<Uint8Array>,
): AsyncGenerator<Uint8Array, void, undefined> {
  try {
    if (start.length > 0) yield start;
    for (let next = await rest.next(); next.done !== true; next = await rest.next()) yield next.value;
  } finally {
    await rest.return?.();
  }
}

async function* through(
  source: AsyncIterable<Uint8Array>,
  transform: Transform,
): AsyncGenerator<Uint8Array, void, undefined> {
  // The pipeline hands an error of either end to the other; it reaches us by the iteration.
  pipeline(Readable.from(source, { objectMode: false }), transform, () => undefined);
  try {
    for await (const chunk of transform) yield chunk as Buffer;
  } catch (error) {
    if (isDamage(error)) {
      throw new BerthError("invalid_image", "The layer's compressed data is damaged.", { cause: error });
    }
    throw error;
  }
}

/** zlib's own errors have codes such as `Z_DATA_ERROR`, zstd's such as `ZSTD_error_corruption_detected`. */
function isDamage(error: unknown): boolean {
  const code = (error as NodeJS.ErrnoException | null)?.code;
  return typeof code === "string" && /^(?:Z_|ZSTD_)/.test(code);
}
