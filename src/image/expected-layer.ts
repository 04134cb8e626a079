import { createHash } from "node:crypto";
import { BerthError } from "../core/errors.ts";
import type { Layer } from "../core/image.ts";
import type { StoredBlob } from "./blobs.ts";
import type { Converted } from "./convert.ts";

// A layer's blob and what it is converted to, held against what a manifest says of them.

/** @throws BerthError `digest_mismatch` */
export function checkDiffId({ diffId }: Converted, expect: Layer): void {
  if (diffId === expect.diffId) return;
  throw new BerthError("digest_mismatch", `The layer's content is ${diffId}, not ${expect.diffId}.`);
}

/** Reads a blob of the store to its end. @throws BerthError `digest_mismatch` */
export async function verify(source: AsyncIterable<Uint8Array>, { digest, sizeBytes }: Layer): Promise<StoredBlob> {
  const hash = createHash("sha256");
  for await (const chunk of source) hash.update(chunk);
  const found = `sha256:${hash.digest("hex")}`;
  if (found === digest) return { digest, sizeBytes };
  throw new BerthError("digest_mismatch", `The blob ${digest} has the content of ${found}.`);
}

/** The source's bytes, which must be as many as the layer is said to have. */
export async function* exactly(source: AsyncIterable<Uint8Array>, expect: Layer): AsyncGenerator<Uint8Array, void> {
  let seen = 0;
  for await (const chunk of source) {
    seen += chunk.length;
    if (seen > expect.sizeBytes) {
      throw new BerthError("digest_mismatch", `The blob ${expect.digest} is larger than its manifest says.`);
    }
    yield chunk;
  }
  if (seen < expect.sizeBytes) {
    throw new BerthError("digest_mismatch", `The blob ${expect.digest} is smaller than its manifest says.`);
  }
}
