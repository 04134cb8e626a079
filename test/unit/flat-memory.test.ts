import { createHash } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { afterAll, beforeAll, beforeEach, expect, test } from "vitest";
import type { Layer } from "../../src/core/image.ts";
import { readContext } from "../../src/engine/build/context.ts";
import { convertLayer } from "../../src/image/convert.ts";
import { FileBlobs } from "../../src/image/file-blobs.ts";
import type { LayerEntry } from "../../src/image/layer-entry.ts";
import { defaultLimits } from "../../src/image/layer-limits.ts";
import { LayerStore } from "../../src/image/layers.ts";
import { writeTar } from "../../src/image/tar-write.ts";
import { Tee } from "../../src/image/tee.ts";
import { entry } from "../support/image.ts";

// What passes through is let go: each way that a large context or layer takes holds some buffers and never its content.
// What nobody refers to any more is collected before it is counted, so that these figures say what is held.

const MiB = 2 ** 20;
const mebibytes = 64;
/** Buffers of streams, (de)compressors, hashes and files. */
const held = 24 * MiB;

setFlagsFromString("--expose-gc");
const gc = runInNewContext("gc") as () => void;
/** Twice: buffers are given back beside the program, and the second waits for the first's. */
const collectGarbage = (): void => {
  gc();
  gc();
};
let directory: string;
let blobs: FileBlobs;
let peak: number;
let before: number;

beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), "berth-flat-"));
  blobs = new FileBlobs(join(directory, "blobs"));
});
afterAll(() => {
  rmSync(directory, { recursive: true, force: true });
});
beforeEach(() => {
  collectGarbage();
  before = process.memoryUsage().arrayBuffers;
  peak = 0;
});

/** Fresh buffers of 1 MiB; what is held at the time is looked at on the way. */
async function* content(): AsyncGenerator<Uint8Array> {
  for (let i = 0; i < mebibytes; i++) {
    if (i % 16 === 15) {
      collectGarbage();
      peak = Math.max(peak, process.memoryUsage().arrayBuffers - before);
    }
    yield await Promise.resolve(Buffer.alloc(MiB, i));
  }
}

const large = (): LayerEntry[] => [{ ...entry("large"), size: mebibytes * MiB, content: content() }];
const store = (name: string) => new LayerStore(join(directory, name), blobs);

test("a test that keeps it all would see it", async () => {
  const all: Uint8Array[] = [];
  for await (const chunk of content()) all.push(chunk);
  expect(all).toHaveLength(mebibytes);
  expect(peak).toBeGreaterThan((mebibytes - 2) * MiB);
});

test("two readers of one stream", async () => {
  const { branches } = new Tee(content());
  const read = async (branch: AsyncIterable<Uint8Array>) => {
    let bytes = 0;
    for await (const chunk of branch) bytes += chunk.length;
    return bytes;
  };
  expect(await Promise.all(branches.map(read))).toEqual([mebibytes * MiB, mebibytes * MiB]);
  expect(peak).toBeLessThan(held);
});

test("a context that is uploaded, and read", async () => {
  const { digest } = await blobs.put(writeTar(large()), { maxBytes: Number.MAX_SAFE_INTEGER });
  expect(await blobs.size(digest)).toBeGreaterThan(mebibytes * MiB);
  expect(peak).toBeLessThan(held);
  peak = 0;
  const context = await readContext(writeTar(large()), join(directory, "spool"));
  await context.close();
  expect(context.bytes).toBe(mebibytes * MiB);
  expect(peak).toBeLessThan(held);
});

test("a layer that is made, and one that comes from a registry", async () => {
  await store("made").create(large());
  expect(peak).toBeLessThan(held);
  peak = 0;
  const hash = createHash("sha256");
  let sizeBytes = 0;
  for await (const chunk of writeTar(large())) {
    hash.update(chunk);
    sizeBytes += chunk.length;
  }
  const digest = `sha256:${hash.digest("hex")}`;
  const layer: Layer = { digest, diffId: digest, sizeBytes, mediaType: "application/vnd.oci.image.layer.v1.tar" };
  peak = 0;
  await store("pulled").import(() => writeTar(large()), layer);
  expect(peak).toBeLessThan(held);
});

test("a layer of very many small files, whose content stands behind their inodes", async () => {
  const files = 40_000;
  function* many(): Generator<LayerEntry> {
    for (let i = 0; i < files; i++) {
      yield entry(String(i), { content: "x" });
      if (i % 10_000 !== 9999) continue;
      collectGarbage();
      peak = Math.max(peak, process.memoryUsage().arrayBuffers - before);
    }
  }
  await store("many").create(many());
  expect(peak).toBeLessThan(held);
  // As what a bind mount shows: headers and contents are cut from the same memory in turn.
  await convertLayer(writeTar(many()), join(directory, "many.erofs"), defaultLimits);
  expect(peak).toBeLessThan(held);
});
