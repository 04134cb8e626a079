import type { FileHandle } from "node:fs/promises";
import type { Readable } from "node:stream";

/** What is read once, from its beginning to its end. */
export type Bytes = AsyncIterable<Uint8Array> | Iterable<Uint8Array>;

export interface PutExpectation {
  /** The digest that the bytes must have; absent: whatever they have. */
  digest?: string;
  maxBytes: number;
  /** Awaited when the bytes are complete and their digest is right; if it throws, nothing is kept. */
  confirm?: () => Promise<void>;
  /** Called when the bytes are complete and their digest is known, before they are kept: nobody may be told of the blob yet. */
  written?: (blob: StoredBlob) => void;
}

/** Bytes from `start` to `end`, both included; without `end` to the last. */
export interface ByteRange {
  start: number;
  end?: number;
}

export interface StoredBlob {
  digest: string;
  sizeBytes: number;
}

/**
 * Content-addressed bytes. A blob appears whole and verified or not at all, never changes, and storing it again is
 * harmless. It does not know who may read what: that is the rows' business.
 */
export interface BlobStore {
  /** Bytes of a blob; null when it is not there. Whoever is told of a blob can count on it: see `Claim`. */
  size(digest: string): Promise<number | null>;
  /**
   * The blob, or a part of it. A whole one that comes from elsewhere is verified on the way: its stream fails at the end.
   * @throws BerthError `not_found`, `blob_store_error`; the stream with `digest_mismatch`, `blob_store_error`.
   */
  open(digest: string, range?: ByteRange): Promise<Readable>;
  /** The blob as a file of this machine, which stays whole while it is open; null: there is none. */
  file(digest: string): Promise<FileHandle | null>;
  /** @throws BerthError `digest_mismatch`, `body_too_large`, `disk_full`, `blob_store_error`, or the source's error. */
  put(source: Bytes, expect: PutExpectation): Promise<StoredBlob>;
  /** Removes from this machine what lay there for so long without being of use: unfinished blobs, copies. */
  tidy(olderThanMs: number): Promise<void>;
}

/**
 * Keeps a blob that no row needs (yet) from being collected for a while. It is awaited before somebody is told of the blob,
 * and before it is stored; see image/collect-blobs.ts.
 */
export type Claim = (digest: string) => Promise<void>;

/** A sender's blob that comes in pieces: this one goes from `start` to the end, unless it breaks off. */
export interface IncomingBlob {
  digest: string;
  sizeBytes: number;
  start: number;
  /** Who sends it: letters, digits and `_`. What one has sent another does not go on with. */
  sender: string;
}

/** A request that somebody without the bucket's credentials can make for a while. */
export interface SignedRequest {
  url: URL;
  headers: Record<string, string>;
}

/** The cluster's store as the API role has it: it takes in what hosts send, and is collected. */
export interface ClusterStore extends BlobStore {
  /** Bytes that are here of a blob that a sender has begun to send. */
  received(blob: Pick<IncomingBlob, "digest" | "sender">): Promise<number>;
  /**
   * Takes in a blob from where it broke off; what arrives is kept for the next attempt when it breaks off again.
   * @throws BerthError `invalid_state` when less than `start` is here, else as `put` does.
   */
  receive(source: AsyncIterable<Uint8Array>, blob: IncomingBlob): Promise<void>;
  /** How to read the blob elsewhere; null: it is here. */
  readElsewhere(digest: string): Promise<SignedRequest | null>;
  /** How to store the blob elsewhere, in one request; null: it is to be sent here. */
  writeElsewhere(blob: StoredBlob): Promise<SignedRequest | null>;
  /** Removes a blob; one that is not there is no error. */
  delete(digest: string): Promise<void>;
  /** The digests of all blobs, in no order. */
  list(): AsyncIterable<string>;
}
