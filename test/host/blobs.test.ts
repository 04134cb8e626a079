import { execFileSync } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import { mkdir, mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { openHostStore } from "../../src/image/blob-stores.ts";
import { Bucket } from "../../src/image/bucket.ts";
import { BucketBlobs } from "../../src/image/bucket-blobs.ts";
import { FileBlobs } from "../../src/image/file-blobs.ts";
import { HttpClient } from "../../src/image/http.ts";
import { OutboundPolicy } from "../../src/image/outbound.ts";
import { Retry } from "../../src/image/retry.ts";
import { startBucket } from "../support/bucket.ts";
import { startInternalListener } from "../support/internal-listener.ts";

const mib = 1 << 20;
let directory: string;
let mounted: string[];
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "berth-blobs-"));
  mounted = [];
});
afterEach(async () => {
  for (const path of mounted) execFileSync("umount", [path]);
  await rm(directory, { recursive: true, force: true });
});

const keys = { "key-a": "hst_a" };
const hostStore = (url: string) => openHostStore({ url, credential: "key-a", ca: null }, join(directory, "host"));

/** So many MiB that no compression of memory makes small, one after the other. */
function megabytes(count: number): Readable {
  return Readable.from(blocks(count));
}

function* blocks(count: number): Generator<Buffer> {
  const block = randomBytes(mib);
  for (let n = 0; n < count; n++) {
    block.writeUInt32BE(n);
    yield Buffer.from(block);
  }
}

describe("a full disk", () => {
  let full: string;
  beforeEach(async () => {
    full = join(directory, "full");
    await mkdir(full);
    execFileSync("mount", ["-t", "tmpfs", "-o", "size=8m", "tmpfs", full]);
    mounted.push(full);
  });

  test("of the API is told to the host that sends, which can try again when there is room", async () => {
    const store = new FileBlobs(join(full, "blobs"));
    const api = await startInternalListener(store, keys);
    try {
      const host = hostStore(api.url);
      await expect(host.put(megabytes(16), { maxBytes: 1e9 })).rejects.toMatchObject({ code: "disk_full" });
      expect(await readdir(join(full, "blobs/sha256"))).toEqual([]);
      // Nothing that had come is in the way.
      await host.put(megabytes(2), { maxBytes: 1e9 });
    } finally {
      await api.close();
    }
  });

  test("of a host is told to who stores there", async () => {
    const api = await startInternalListener(new FileBlobs(join(directory, "store")), keys);
    try {
      const host = openHostStore({ url: api.url, credential: "key-a", ca: null }, join(full, "host"));
      await expect(host.put(megabytes(16), { maxBytes: 1e9 })).rejects.toMatchObject({ code: "disk_full" });
      expect(await readdir(join(full, "host/tmp"))).toEqual([]);
    } finally {
      await api.close();
    }
  });
});

describe("memory stays flat", () => {
  /** Moves the blob from a host to the store and back; the most that this process, which is both, grew by. */
  async function growth(url: string, count: number): Promise<number> {
    const host = hostStore(url);
    const move = async (size: number) => {
      const { digest } = await host.put(megabytes(size), { maxBytes: 1e9 });
      await host.tidy(-1);
      const hash = createHash("sha256");
      for await (const chunk of await host.open(digest)) hash.update(chunk as Buffer);
      expect(`sha256:${hash.digest("hex")}`).toBe(digest);
    };
    await move(20);
    const before = process.memoryUsage.rss();
    let most = 0;
    const timer = setInterval(() => (most = Math.max(most, process.memoryUsage.rss() - before)), 10);
    await move(count);
    clearInterval(timer);
    return most / mib;
  }

  test("for 300 MiB over the internal listener", async () => {
    const api = await startInternalListener(new FileBlobs(join(directory, "store")), keys);
    try {
      // It was 17.
      expect(await growth(api.url, 300)).toBeLessThan(80);
    } finally {
      await api.close();
    }
  }, 120_000);

  test("for 160 MiB to a bucket and back, in parts and as one", async () => {
    const server = await startBucket();
    const place = { ...server.place, endpoint: server.unguarded };
    const http = new HttpClient(new OutboundPolicy(["127.0.0.0/8"]), 30_000);
    const retry = new Retry();
    const bucket = new Bucket(place, server.credentials, http, retry, 64 * mib);
    const store = new BucketBlobs(new FileBlobs(join(directory, "store")), bucket, retry, () => Promise.resolve());
    const api = await startInternalListener(store, keys);
    try {
      expect(await growth(api.url, 160)).toBeLessThan(80);
      const before = process.memoryUsage.rss();
      await store.put(megabytes(160), { maxBytes: 1e9 });
      expect((process.memoryUsage.rss() - before) / mib).toBeLessThan(80);
    } finally {
      await api.close();
      http.close();
      await server.close();
    }
  }, 180_000);
});
