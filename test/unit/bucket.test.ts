import { randomBytes } from "node:crypto";
import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "vitest";
import { openHostStore } from "../../src/image/blob-stores.ts";
import { Bucket } from "../../src/image/bucket.ts";
import { BucketBlobs } from "../../src/image/bucket-blobs.ts";
import { digestOf } from "../../src/image/digest.ts";
import { FileBlobs } from "../../src/image/file-blobs.ts";
import { HttpClient } from "../../src/image/http.ts";
import { OutboundPolicy } from "../../src/image/outbound.ts";
import { Retry } from "../../src/image/retry.ts";
import { startBucket, type TestBucket } from "../support/bucket.ts";
import { breaking, collect, gather } from "../support/image.ts";
import { startInternalListener } from "../support/internal-listener.ts";

const partBytes = 5 << 20;
const content = randomBytes(3_000_000);
const digest = digestOf(content);
const key = `/images/berth/a/sha256/${digest.slice(7)}`;

let server: TestBucket;
let directory: string;
let bucket: Bucket;
let store: BucketBlobs;
let claimed: string[];
const http = new HttpClient(new OutboundPolicy(["127.0.0.0/8"]), 5_000);
const retry = new Retry({ attempts: 3, firstDelayMs: 1 });

beforeAll(async () => {
  server = await startBucket();
});
afterAll(async () => {
  http.close();
  await server.close();
});
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "berth-bucket-blobs-"));
  claimed = [];
  const claim = (blob: string) => Promise.resolve(void claimed.push(blob));
  bucket = new Bucket(server.place, server.credentials, http, retry, partBytes);
  store = new BucketBlobs(new FileBlobs(directory, claim), bucket, retry, claim);
  server.requests.length = 0;
});
afterEach(async () => {
  for await (const stored of store.list()) await store.delete(stored);
  await rm(directory, { recursive: true, force: true });
});

test("what was put is in the bucket, whole or in part, once its digest is right", async () => {
  expect(await store.size(digest)).toBeNull();
  await expect(store.open(digest)).rejects.toMatchObject({ code: "not_found" });
  expect(await store.put(Readable.from([content]), { maxBytes: 1e9 })).toEqual({ digest, sizeBytes: content.length });
  expect(server.requests).toEqual([`HEAD ${key} 404`, `GET ${key} 404`, `HEAD ${key} 404`, `PUT ${key} 200`]);
  expect(claimed).toContain(digest);
  await store.tidy(-1);
  expect(await store.size(digest)).toBe(content.length);
  expect((await collect(await store.open(digest))).equals(content)).toBe(true);
  expect(await collect(await store.open(digest, { start: 5, end: 9 }))).toEqual(content.subarray(5, 10));
  expect(await collect(await store.open(digest, { start: content.length - 3 }))).toEqual(content.subarray(-3));
  expect(await gather(store.list())).toEqual([digest]);
  await store.delete(digest);
  await store.delete(digest);
  expect(await store.size(digest)).toBeNull();
});

test("what is known to be in the bucket is neither asked for nor sent again, but claimed again", async () => {
  await store.put(Readable.from([content]), { maxBytes: 1e9 });
  await store.put(Readable.from([content]), { maxBytes: 1e9 });
  expect(await store.size(digest)).toBe(content.length);
  expect(server.requests).toEqual([`HEAD ${key} 404`, `PUT ${key} 200`]);
  // As it is stored and as it is asked for: twice, twice and once.
  expect(claimed).toHaveLength(5);
  // Another process has not seen it, and asks.
  const other = new BucketBlobs(new FileBlobs(directory), bucket, retry, () => Promise.resolve());
  await other.put(Readable.from([content]), { maxBytes: 1e9 });
  expect(server.requests.slice(2)).toEqual([`HEAD ${key} 200`]);
});

test("nothing leaves of what is wrong, too large or broken off", async () => {
  const other = digestOf(Buffer.from("other"));
  const wrong = store.put(Readable.from([content]), { digest: other, maxBytes: 1e9 });
  await expect(wrong).rejects.toMatchObject({ code: "digest_mismatch" });
  await expect(store.put(Readable.from([content]), { maxBytes: 9 })).rejects.toMatchObject({ code: "body_too_large" });
  await expect(store.put(breaking([content], "line cut"), { maxBytes: 1e9 })).rejects.toThrow("line cut");
  expect(server.requests).toEqual([]);
  expect([...(await readdir(join(directory, "tmp"))), ...(await readdir(join(directory, "sha256")))]).toEqual([]);
});

test("the bucket itself refuses bytes that are not the digest's", async () => {
  const open = () => Promise.resolve(Readable.from([Buffer.from(content).fill(0, 5, 9)]));
  await expect(bucket.send({ digest, sizeBytes: content.length, open })).rejects.toMatchObject({
    code: "blob_store_error",
    message: "The blob store answered 400 (XAmzContentSHA256Mismatch).",
  });
  expect(await bucket.size(digest)).toBeNull();
});

test("a large blob goes in parts, and is one", async () => {
  const large = randomBytes(2 * partBytes + 17);
  const stored = await store.put(Readable.from([large]), { maxBytes: 1e9 });
  expect(server.requests.filter((line) => line.startsWith("PUT"))).toHaveLength(3);
  await store.tidy(-1);
  expect((await collect(await store.open(stored.digest))).equals(large)).toBe(true);
});

test("a part that can't be sent takes the others with it", async () => {
  const large = randomBytes(partBytes + 17);
  let reads = 0;
  const open = ({ start, end }: { start: number; end?: number }) => {
    if (++reads > 3) throw new Error("the disk is gone");
    return Promise.resolve(Readable.from([large.subarray(start, (end ?? large.length) + 1)]));
  };
  const sent = bucket.send({ digest: digestOf(large), sizeBytes: large.length, open });
  await expect(sent).rejects.toThrow("the disk is gone");
  expect(server.requests.at(-1)).toMatch(/^DELETE .*uploadId=/);
});

test("what passes is tried again, and what does not pass says what it is", async () => {
  server.failNext(503, 500);
  await store.put(Readable.from([content]), { maxBytes: 1e9 });
  server.failNext(503, 503, 503);
  await expect(bucket.size(digest)).rejects.toMatchObject({
    code: "blob_store_error",
    message: "The blob store answered 503.",
    retryable: true,
  });
  const wrongKey = { ...server.credentials, secretAccessKey: "wrong" };
  const stranger = new Bucket(server.place, wrongKey, http, retry);
  await expect(gather(stranger.list())).rejects.toMatchObject({
    code: "blob_store_error",
    message: "The blob store answered 403 (SignatureDoesNotMatch).",
  });
  const elsewhere = new Bucket({ ...server.place, endpoint: new URL("http://127.0.0.1:1") }, wrongKey, http, retry);
  await expect(elsewhere.size(digest)).rejects.toMatchObject({
    code: "blob_store_error",
    message: /can't be reached: .*ECONNREFUSED/,
  });
});

test("lists more blobs than a page has", async () => {
  const digests: string[] = [];
  for (let n = 0; n < 12; n++)
    digests.push((await store.put(Readable.from([Buffer.from([n])]), { maxBytes: 1 })).digest);
  expect((await gather(bucket.list(5))).sort()).toEqual(digests.sort());
  expect(server.requests.filter((line) => line.includes("list-type"))).toHaveLength(3);
});

test("hosts read and write the bucket past the API, by requests that were signed for them", async () => {
  const api = await startInternalListener(store, { "key-a": "hst_a" });
  try {
    const host = openHostStore({ url: api.url, credential: "key-a", ca: null }, join(directory, "host"));
    await host.put(Readable.from([content]), { maxBytes: 1e9 });
    expect(claimed).toContain(digest);
    expect(server.requests.filter((line) => line.startsWith("PUT"))).toEqual([`PUT ${key} 200`]);
    // It did not pass through the API's machine.
    await expect(readdir(join(directory, "sha256"))).rejects.toMatchObject({ code: "ENOENT" });
    await host.put(Readable.from([content]), { maxBytes: 1e9 });
    expect(server.requests.filter((line) => line.startsWith("PUT"))).toHaveLength(1);
    await host.tidy(-1);
    expect((await collect(await host.open(digest))).equals(content)).toBe(true);
    expect(await collect(await host.open(digest, { start: 5, end: 9 }))).toEqual(content.subarray(5, 10));
    expect(server.requests.filter((line) => line.startsWith("GET") && line.includes("X-Amz-Signature"))).toHaveLength(
      2,
    );

    const asked = await fetch(`${api.url}/internal/blobs/${digestOf(Buffer.from("new"))}`, {
      method: "POST",
      headers: { authorization: "Bearer key-a" },
      body: JSON.stringify({ sizeBytes: 3 }),
    });
    const { url, headers } = (await asked.json()) as { url: string; headers: Record<string, string> };
    // What was signed is good for these bytes at this place only.
    const put = async (to: string, body: string) => {
      const response = await fetch(to, { method: "PUT", headers, body });
      await response.arrayBuffer();
      return response.status;
    };
    expect(await put(url, "bad")).toBe(400);
    expect(await put(url.replace(/[0-9a-f]{8}$/, "00000000"), "new")).toBe(403);
    expect(await put(url, "new")).toBe(200);
  } finally {
    await api.close();
  }
});

test("what is too large for one request goes to the bucket through the API", async () => {
  const through = new BucketBlobs(new FileBlobs(directory), new OneByteRequests(), retry, () => Promise.resolve());
  const api = await startInternalListener(through, { "key-a": "hst_a" });
  try {
    const host = openHostStore({ url: api.url, credential: "key-a", ca: null }, join(directory, "host"));
    await host.put(Readable.from([content]), { maxBytes: 1e9 });
    expect(await bucket.size(digest)).toBe(content.length);
  } finally {
    await api.close();
  }
});

/** A bucket that takes next to nothing in one request of a host's. */
class OneByteRequests extends Bucket {
  constructor() {
    super(server.place, server.credentials, http, retry, partBytes);
  }

  override signedWrite(): Promise<null> {
    return Promise.resolve(null);
  }
}
