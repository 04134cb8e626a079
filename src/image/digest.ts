import { createHash } from "node:crypto";
import { BerthError } from "../core/errors.ts";
import { digestPattern } from "../core/reference.ts";

/** `sha256:` and the hex of these bytes. */
export function digestOf(bytes: Uint8Array): string {
  return `sha256:${createHash("sha256").update(bytes).digest("hex")}`;
}

/** The 64 hex digits of a digest, safe as a file name. @throws BerthError `invalid_reference` for any other text. */
export function digestHex(digest: string): string {
  if (!digestPattern.test(digest)) {
    throw new BerthError("invalid_reference", `${JSON.stringify(digest.slice(0, 100))} is not a sha256 digest.`);
  }
  return digest.slice("sha256:".length);
}
