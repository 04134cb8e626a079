import { createHash } from "node:crypto";
import type { IncomingMessage } from "node:http";
import { Readable } from "node:stream";
import { AwsV4Signer } from "aws4fetch";
import type { BucketCredentials, BucketPlace } from "../core/blob-store.ts";
import { BerthError } from "../core/errors.ts";
import type { ByteRange, SignedRequest, StoredBlob } from "./blobs.ts";
import { digestHex } from "./digest.ts";
import {
  answeredBytes,
  answeredSize,
  answeredText,
  type FarBlobs,
  type OutgoingBlob,
  passing,
  passingUnlessOurs,
  rangeHeader,
} from "./far-blobs.ts";
import type { HttpBody, HttpClient, HttpRequest } from "./http.ts";
import type { Retry, Transient } from "./retry.ts";

/** SHA-256 of nothing, as the payload of requests without a body. */
const emptyPayload = createHash("sha256").digest("hex");
/** How long a request that was signed for somebody else can be begun. */
const signedSeconds = 900;
/** What S3 takes in one request. */
const maxRequestBytes = 5 * 2 ** 30;

interface BucketRequest {
  method: HttpRequest["method"];
  /** Absent: the bucket itself. */
  key?: string;
  query?: Record<string, string>;
  body?: HttpBody & { sha256: string };
  headers?: { range?: string };
  signal?: AbortSignal;
}

/**
 * Blobs in an S3-compatible bucket, as `<prefix>sha256/<hex>`. The digest of what is sent is signed (SigV4's payload hash),
 * so that the bucket itself refuses other bytes. Large blobs go in parts.
 */
export class Bucket implements FarBlobs {
  readonly #place: BucketPlace;
  readonly #credentials: BucketCredentials;
  readonly #http: HttpClient;
  readonly #retry: Retry;
  readonly #partBytes: number;
  readonly #signingKeys = new Map<string, ArrayBuffer>();
  readonly #never = new AbortController().signal;

  /** @param partBytes Blobs beyond this go in parts of so many bytes; S3 wants 5 MiB at least, and 10,000 parts at most. */
  constructor(
    place: BucketPlace,
    credentials: BucketCredentials,
    http: HttpClient,
    retry: Retry,
    partBytes: number = 256 << 20,
  ) {
    this.#place = place;
    this.#credentials = credentials;
    this.#http = http;
    this.#retry = retry;
    this.#partBytes = partBytes;
  }

  async size(digest: string): Promise<number | null> {
    return this.#again(async () => {
      return answeredSize(await this.#send({ method: "HEAD", key: this.#key(digest) }), failure);
    });
  }

  async read(digest: string, range: ByteRange, signal: AbortSignal): Promise<IncomingMessage | null> {
    const headers = rangeHeader(range);
    const response = await this.#send({ method: "GET", key: this.#key(digest), headers, signal });
    return answeredBytes(response, headers, failure);
  }

  async send(blob: OutgoingBlob): Promise<void> {
    const key = this.#key(blob.digest);
    if (blob.sizeBytes > this.#partBytes) return this.#sendInParts(key, blob);
    const body = { bytes: blob.sizeBytes, open: () => blob.open({ start: 0 }), sha256: digestHex(blob.digest) };
    await this.#expect(200, { method: "PUT", key, body });
  }

  async delete(digest: string): Promise<void> {
    await this.#expect(204, { method: "DELETE", key: this.#key(digest) });
  }

  /** The digests of all blobs, asked for in pages. */
  async *list(pageSize = 1_000): AsyncGenerator<string, void> {
    const prefix = `${this.#place.prefix}sha256/`;
    for (let after = ""; ; ) {
      const query = {
        "list-type": "2",
        "max-keys": String(pageSize),
        prefix,
        ...(after === "" ? {} : { "start-after": after }),
      };
      const page = await this.#expect(200, { method: "GET", query });
      const keys = [...page.matchAll(/<Key>([^<]*)<\/Key>/g)].map(([, key = ""]) => key);
      for (const key of keys) {
        const hex = key.slice(prefix.length);
        if (/^[0-9a-f]{64}$/.test(hex)) yield `sha256:${hex}`;
      }
      const last = keys.at(-1);
      if (last === undefined || !page.includes("<IsTruncated>true</IsTruncated>")) return;
      after = last;
    }
  }

  /** A GET that anybody can make for a quarter of an hour. */
  async signedRead(digest: string): Promise<SignedRequest> {
    const query = { "X-Amz-Expires": String(signedSeconds) };
    const { url } = await this.#signed({ method: "GET", key: this.#key(digest), query }, true);
    return { url, headers: {} };
  }

  /** A PUT of these bytes and no others, to be begun within a quarter of an hour; null: they are too many for one. */
  async signedWrite(blob: StoredBlob): Promise<SignedRequest | null> {
    if (blob.sizeBytes > maxRequestBytes) return null;
    return this.#signed({ method: "PUT", key: this.#key(blob.digest) }, false, digestHex(blob.digest));
  }

  #key(digest: string): string {
    return `${this.#place.prefix}sha256/${digestHex(digest)}`;
  }

  /** Each part's digest is signed; it costs a second reading. What was sent is dropped when a part can't be. */
  async #sendInParts(key: string, blob: OutgoingBlob): Promise<void> {
    const begun = await this.#expect(200, { method: "POST", key, query: { uploads: "" } });
    const uploadId = /<UploadId>([^<]+)<\/UploadId>/.exec(begun)?.[1];
    if (uploadId === undefined) throw passing("began no upload").error;
    try {
      const parts: string[] = [];
      for (let start = 0; start < blob.sizeBytes; start += this.#partBytes) {
        const end = Math.min(start + this.#partBytes, blob.sizeBytes) - 1;
        const number = parts.length + 1;
        const etag = await this.#sendPart(key, { uploadId, partNumber: String(number) }, blob, { start, end });
        parts.push(`<Part><PartNumber>${String(number)}</PartNumber><ETag>${etag}</ETag></Part>`);
      }
      await this.#complete(key, uploadId, parts);
    } catch (error) {
      await this.#expect(204, { method: "DELETE", key, query: { uploadId } }).catch(() => undefined);
      throw error;
    }
  }

  async #sendPart(
    key: string,
    query: Record<string, string>,
    blob: OutgoingBlob,
    range: { start: number; end: number },
  ): Promise<string> {
    const hash = createHash("sha256");
    for await (const chunk of (await blob.open(range)) as AsyncIterable<Buffer>) hash.update(chunk);
    const body = { bytes: range.end - range.start + 1, open: () => blob.open(range), sha256: hash.digest("hex") };
    return this.#again(async () => {
      const response = await this.#send({ method: "PUT", key, query, body });
      if (response.statusCode !== 200) throw await failure(response);
      response.resume();
      const { etag } = response.headers;
      if (etag === undefined) throw passing("stored a part without an ETag").error;
      return etag;
    });
  }

  /** It may answer 200 and then tell of an error in the body, since it keeps the connection alive meanwhile. */
  async #complete(key: string, uploadId: string, parts: readonly string[]): Promise<void> {
    const bytes = Buffer.from(`<CompleteMultipartUpload>${parts.join("")}</CompleteMultipartUpload>`);
    const sha256 = createHash("sha256").update(bytes).digest("hex");
    const body = { bytes: bytes.length, open: () => Readable.from([bytes]), sha256 };
    const answer = await this.#expect(200, { method: "POST", key, query: { uploadId }, body });
    if (answer.includes("<CompleteMultipartUploadResult")) return;
    throw passing(`did not complete an upload${code(answer)}`).error;
  }

  /** Sends until it is answered with this status; the answer's text. */
  async #expect(status: number, request: BucketRequest): Promise<string> {
    return this.#again(async () => {
      const response = await this.#send(request);
      if (response.statusCode !== status) throw await failure(response);
      return readText(response);
    });
  }

  async #again<T>(task: () => Promise<T>): Promise<T> {
    return this.#retry.run(this.#never, task);
  }

  async #send(request: BucketRequest): Promise<IncomingMessage> {
    const { method, body, signal = this.#never } = request;
    const { url, headers } = await this.#signed(request, false, body?.sha256 ?? emptyPayload);
    const empty = method === "POST" && body === undefined ? { "content-length": "0" } : {};
    try {
      const sent = { ...headers, ...request.headers, ...empty };
      return await this.#http.send({ method, url, headers: sent, signal, ...(body === undefined ? {} : { body }) });
    } catch (error) {
      throw passingUnlessOurs(error, signal);
    }
  }

  async #signed(request: BucketRequest, inQuery: boolean, payload = ""): Promise<SignedRequest> {
    const { endpoint, bucket, region } = this.#place;
    const url = new URL(`/${bucket}${request.key === undefined ? "" : `/${request.key}`}`, endpoint);
    for (const [name, value] of Object.entries(request.query ?? {})) url.searchParams.set(name, value);
    const { accessKeyId, secretAccessKey, sessionToken } = this.#credentials;
    const signed = await new AwsV4Signer({
      method: request.method,
      url: url.href,
      headers: inQuery ? {} : { "x-amz-content-sha256": payload },
      accessKeyId,
      secretAccessKey,
      ...(sessionToken === null ? {} : { sessionToken }),
      service: "s3",
      region,
      cache: this.#signingKeys,
      signQuery: inQuery,
    }).sign();
    return { url: signed.url, headers: Object.fromEntries(signed.headers) };
  }
}

async function readText(response: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  try {
    for await (const chunk of response as AsyncIterable<Buffer>) chunks.push(chunk);
  } catch (error) {
    throw passing("broke off an answer", error);
  }
  return Buffer.concat(chunks).toString("utf8");
}

/** Its error code in words, such as ` (NoSuchBucket)`. */
function code(text: string): string {
  const found = /<Code>(\w{1,64})<\/Code>/.exec(text)?.[1];
  return found === undefined ? "" : ` (${found})`;
}

/** What a status that is no success stands for: lasting, or one that may pass. */
async function failure(response: IncomingMessage): Promise<BerthError | Transient> {
  const status = response.statusCode ?? 0;
  const why = code(await answeredText(response));
  if (status === 429 || status >= 500) return passing(`answered ${String(status)}${why}`);
  return passing(`answered ${String(status)}${why}`).error;
}
