import type { Claim, ClusterStore, IncomingBlob, SignedRequest, StoredBlob } from "./blobs.ts";
import type { Bucket } from "./bucket.ts";
import { CachedBlobs } from "./cached-blobs.ts";
import type { FileBlobs } from "./file-blobs.ts";
import type { Retry } from "./retry.ts";

/** The cluster's blobs in a bucket. What hosts read and write goes past this machine where one request is enough. */
export class BucketBlobs extends CachedBlobs implements ClusterStore {
  readonly #bucket: Bucket;
  readonly #claim: Claim;

  /** @param near A directory of this process's own; it claims what is put into it. */
  constructor(near: FileBlobs, bucket: Bucket, retry: Retry, claim: Claim) {
    super(near, bucket, retry);
    this.#bucket = bucket;
    this.#claim = claim;
  }

  override async size(digest: string): Promise<number | null> {
    await this.#claim(digest);
    return this.#bucket.size(digest);
  }

  received(blob: Pick<IncomingBlob, "digest" | "sender">): Promise<number> {
    return this.near.received(blob);
  }

  async receive(source: AsyncIterable<Uint8Array>, blob: IncomingBlob): Promise<void> {
    await this.near.receive(source, blob);
    await this.forward(blob);
  }

  readElsewhere(digest: string): Promise<SignedRequest> {
    return this.#bucket.signedRead(digest);
  }

  async writeElsewhere(blob: StoredBlob): Promise<SignedRequest | null> {
    await this.#claim(blob.digest);
    return this.#bucket.signedWrite(blob);
  }

  async delete(digest: string): Promise<void> {
    await this.#bucket.delete(digest);
    await this.near.delete(digest);
  }

  list(): AsyncIterable<string> {
    return this.#bucket.list();
  }
}
