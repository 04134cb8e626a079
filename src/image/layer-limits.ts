import { BerthError } from "../core/errors.ts";

/** What one layer may hold. A layer past any of these is refused as a whole. */
export interface LayerLimits {
  /** Entries of the tar; a node takes about 400 bytes of memory while the layer is converted (a million: 500 MB, 5 s of CPU). */
  entries: number;
  /** Bytes of the plain tar: what a decompression bomb is measured by. */
  tarBytes: number;
  /** Bytes of all names, link targets and xattrs together: they are held in memory. */
  metadataBytes: number;
  /** Components of a path. */
  depth: number;
  /** Bytes of one node's xattrs; the format's own limit is 256 KiB. */
  xattrBytes: number;
}

export const defaultLimits: LayerLimits = {
  entries: 1_000_000,
  tarBytes: 32 * 2 ** 30,
  metadataBytes: 256 * 2 ** 20,
  depth: 1024,
  xattrBytes: 64 * 2 ** 10,
};

export function tooLarge(what: string): BerthError {
  return new BerthError("layer_too_large", `The layer has ${what}.`);
}
