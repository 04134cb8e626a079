import type { Claim, ClusterStore, IncomingBlob, SignedRequest, StoredBlob } from "./blobs.ts";
import type { Bucket } from "./bucket.ts";
import { CachedBlobs } from "./cached-blobs.ts";
import type { FileBlobs } from "./file-blobs.ts";
import type { Retry } from "./retry.ts";

/** Asking a bucket takes long. What was claimed and seen stays an hour at least; half of that is believed. */
const knownMs = 30 * 60_000;
const maxKnown = 10_000;
/** Larger blobs are sent only when the bucket lacks them. */
const askedFirst = 1 << 20;

/** The cluster's blobs in a bucket. What hosts read and write goes past this machine where one request is enough. */
export class BucketBlobs extends CachedBlobs implements ClusterStore {
  readonly #bucket: Bucket;
  readonly #claim: Claim;
  /** What was there not long ago, by digest. */
  readonly #known = new Map<string, { sizeBytes: number; at: number }>();

  /** @param near A directory of this process's own; it claims what is put into it. */
  constructor(near: FileBlobs, bucket: Bucket, retry: Retry, claim: Claim) {
    super(near, bucket, retry);
    this.#bucket = bucket;
    this.#claim = claim;
  }

  override async size(digest: string): Promise<number | null> {
    await this.#claim(digest);
    const known = this.#known.get(digest);
    if (known !== undefined && performance.now() - known.at < knownMs) return known.sizeBytes;
    const at = performance.now();
    const sizeBytes = await this.#bucket.size(digest);
    if (sizeBytes !== null) this.#note({ digest, sizeBytes }, at);
    return sizeBytes;
  }

  received(blob: Pick<IncomingBlob, "digest" | "sender">): Promise<number> {
    return this.near.received(blob);
  }

  async receive(source: AsyncIterable<Uint8Array>, blob: IncomingBlob): Promise<void> {
    await this.near.receive(source, blob);
    await this.forward(blob);
  }

  /** Sending a small blob again costs less than asking. */
  protected override async forward(blob: StoredBlob): Promise<void> {
    if (blob.sizeBytes > askedFirst && (await this.size(blob.digest)) !== null) return;
    const at = performance.now();
    await super.forward(blob);
    this.#note(blob, at);
  }

  readElsewhere(digest: string): Promise<SignedRequest> {
    return this.#bucket.signedRead(digest);
  }

  async writeElsewhere(blob: StoredBlob): Promise<SignedRequest | null> {
    await this.#claim(blob.digest);
    return this.#bucket.signedWrite(blob);
  }

  async delete(digest: string): Promise<void> {
    this.#known.delete(digest);
    await this.#bucket.delete(digest);
    await this.near.delete(digest);
  }

  list(): AsyncIterable<string> {
    return this.#bucket.list();
  }

  /** `at`: when it was claimed. */
  #note({ digest, sizeBytes }: StoredBlob, at: number): void {
    if (this.#known.size >= maxKnown) this.#known.clear();
    this.#known.set(digest, { sizeBytes, at });
  }
}
