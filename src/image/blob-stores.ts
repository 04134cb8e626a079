import { type ApiAccess, transportOf } from "../core/api-access.ts";
import type { BlobPlace, BucketCredentials } from "../core/blob-store.ts";
import type { BlobStore, Claim, ClusterStore } from "./blobs.ts";
import { Bucket } from "./bucket.ts";
import { BucketBlobs } from "./bucket-blobs.ts";
import { CachedBlobs } from "./cached-blobs.ts";
import { FileBlobs } from "./file-blobs.ts";
import { HostBlobs } from "./host-blobs.ts";
import { HttpClient } from "./http.ts";
import { OutboundPolicy } from "./outbound.ts";
import { Retry } from "./retry.ts";

/** Connections to what the operator set up: it may be anywhere. */
const anywhere = new OutboundPolicy(["0.0.0.0/0", "::/0"]);
const idleMs = 30_000;

/**
 * The cluster's store, for the API role and for a worker of its machine.
 * @param near Directory of this process's own for what is on its way to a bucket.
 * @param requireRoom as of FileBlobs
 */
export function openClusterStore(
  place: BlobPlace,
  credentials: BucketCredentials | null,
  near: string,
  claim: Claim,
  requireRoom?: (directory: string) => void,
): ClusterStore {
  if (place.kind === "file") return new FileBlobs(place.directory, claim, requireRoom);
  if (credentials === null) throw new Error("a bucket needs credentials");
  const retry = new Retry();
  const bucket = new Bucket(place, credentials, new HttpClient(anywhere, idleMs), retry);
  return new BucketBlobs(new FileBlobs(near, claim, requireRoom), bucket, retry, claim);
}

/**
 * The cluster's store, for a worker away from the API; `near` as above. It waits half a minute for an API that is being
 * started again: who needs a blob can do nothing else.
 */
export function openHostStore(
  api: ApiAccess,
  near: string,
  retry: Retry = new Retry({ attempts: 8, firstDelayMs: 250 }),
): BlobStore {
  const { url, tls } = transportOf(api);
  const http = new HttpClient(anywhere, idleMs, tls);
  const elsewhere = new HttpClient(anywhere, idleMs);
  const far = new HostBlobs({ api: url, credential: api.credential, http, elsewhere, retry });
  return new CachedBlobs(new FileBlobs(near), far, retry);
}
