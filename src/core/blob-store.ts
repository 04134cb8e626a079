import { resolve } from "node:path";

/** Where the cluster's blobs are kept: a directory, or an S3-compatible bucket. */
export type BlobPlace = { kind: "file"; directory: string } | ({ kind: "s3" } & BucketPlace);

export interface BucketPlace {
  /** Scheme, host and port; the bucket is the first part of the path there. */
  endpoint: URL;
  region: string;
  bucket: string;
  /** What all keys begin with: empty, or a path that ends in a slash. */
  prefix: string;
}

export interface BucketCredentials {
  accessKeyId: string;
  secretAccessKey: string;
  /** Of credentials that were lent for a while. */
  sessionToken: string | null;
}

/** What the text of a place must look like. */
export const blobPlaceRule = "must be file:/DIRECTORY, or s3://BUCKET/PREFIX?endpoint=URL&region=REGION";

/** `file:/DIRECTORY` or `s3://BUCKET/PREFIX?endpoint=URL&region=REGION`, endpoint and region being AWS's by default. */
export function parseBlobPlace(text: string): BlobPlace | null {
  if (!URL.canParse(text)) return null;
  const { protocol, host, hostname, pathname, search, searchParams, hash } = new URL(text);
  if (protocol === "file:") {
    if (host !== "" || search !== "" || hash !== "" || pathname === "/") return null;
    return { kind: "file", directory: resolve(decodeURIComponent(pathname)) };
  }
  if (protocol !== "s3:" || hostname === "" || host !== hostname || hash !== "") return null;
  if ([...searchParams.keys()].some((name) => name !== "region" && name !== "endpoint")) return null;
  const region = searchParams.get("region") ?? "us-east-1";
  const endpoint = searchParams.get("endpoint") ?? `https://s3.${region}.amazonaws.com`;
  if (!/^[a-z0-9-]+$/.test(region) || !/^https?:\/\/[^/?#@]+\/?$/.test(endpoint) || !URL.canParse(endpoint))
    return null;
  // Letters that mean the same in a path, in a signature and in a list of keys.
  if (!/^[\w./-]*$/.test(pathname)) return null;
  const prefix = pathname.replaceAll(/^\/+|\/+$/g, "");
  return {
    kind: "s3",
    endpoint: new URL(endpoint),
    region,
    bucket: hostname,
    prefix: prefix === "" ? "" : `${prefix}/`,
  };
}

/** A blob that no row needed at `since` (the database's own form of it, which is exact), and that nobody has claimed since. */
export interface UnneededBlob {
  digest: string;
  since: string;
}
