import { mkdtemp, readFile, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { decompress } from "../../src/image/compress.ts";
import { type Converted, convertLayer } from "../../src/image/convert.ts";
import { directorySize } from "../../src/image/erofs/directory.ts";
import { ErofsReader, type Lookup } from "../../src/image/erofs/reader.ts";
import type { LayerEntry } from "../../src/image/layer-entry.ts";
import { defaultLimits, type LayerLimits } from "../../src/image/layer-limits.ts";
import { writeTar } from "../../src/image/tar-write.ts";
import { chunked, collect, entry } from "../support/image.ts";

let directory: string;
let images = 0;
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "berth-erofs-"));
});
afterEach(async () => {
  await rm(directory, { recursive: true, force: true });
});

async function convert(entries: LayerEntry[]): Promise<{ path: string; converted: Converted }> {
  const path = join(directory, String(images++));
  return { path, converted: await convertLayer(writeTar(entries), path, defaultLimits) };
}

async function lookUp(path: string, names: string[]): Promise<Lookup[]> {
  const reader = await ErofsReader.open(path);
  try {
    return names.map((name) => reader.lookup(name.split("/")));
  } finally {
    await reader.close();
  }
}

describe("an image", () => {
  test("gives back every name with its attributes, directories of any size included", async () => {
    const name = fc
      .uint8Array({ minLength: 1, maxLength: 255 })
      .map((bytes) => Buffer.from(bytes).toString("latin1").replaceAll(/[\0/]/g, "_"))
      .filter((text) => text !== "." && text !== ".." && !text.startsWith(".wh."));
    await fc.assert(
      fc.asyncProperty(
        fc.uniqueArray(name, { minLength: 1, maxLength: 120 }),
        fc.uint8Array({ maxLength: 4200 }),
        fc.integer({ min: 0, max: 65_535 }),
        async (names, value, uid) => {
          const xattrs = new Map([["user.x", value]]);
          const entries = names.map((one, i) =>
            entry(`d/${one}`, { uid, mode: i % 0o7777, type: i % 2 === 0 ? "directory" : "fifo" }),
          );
          const { path } = await convert([entry("d", { type: "directory", xattrs }), ...entries]);
          const found = await lookUp(path, [...names.map((one) => `d/${one}`), "d", "d/.missing", "e", "d/../e"]);
          expect(found.slice(0, names.length).map(({ node }) => [node?.uid, node?.mode])).toEqual(
            names.map((_, i) => [uid, i % 0o7777]),
          );
          const [d, ...missing] = found.slice(names.length);
          expect(Buffer.from(d?.node?.xattrs.get("user.x") ?? [])).toEqual(Buffer.from(value));
          expect(missing.map(({ node }) => node)).toEqual([null, null, null]);
        },
      ),
      { numRuns: 30 },
    );
  });

  test("says what hides lower layers", async () => {
    const { path, converted } = await convert([entry("a/.wh..wh..opq"), entry("a/b/c"), entry(".wh.w"), entry("f")]);
    const found = await lookUp(path, ["a", "a/b/c", "a/none", "w", "f/x", "none"]);
    expect(found.map(({ node, sealed }) => [node?.type ?? null, sealed])).toEqual([
      ["directory", true],
      ["file", true],
      [null, true],
      ["whiteout", true],
      [null, true],
      [null, false],
    ]);
    expect(converted.implicit).toEqual(["a", "a/b"]);
  });

  test("has small files behind their inodes, as long as they are not too many to be held", async () => {
    const content = (i: number) => Buffer.alloc(1024, i);
    const { path, converted } = await convert(
      Array.from({ length: 17_000 }, (_, i) => entry(String(i), { content: content(i) })),
    );
    // 1 KiB and an inode each, of which three share a block; the last 616 have blocks of their own, and inodes.
    expect(converted.imageBytes).toBeLessThan(17_000 * 1600);
    const reader = await ErofsReader.open(path);
    for (const i of [0, 1, 16_383, 16_384, 16_999]) {
      const { node } = reader.lookup([String(i)]);
      expect(node === null ? null : reader.content(node)).toEqual(content(i));
    }
    await reader.close();
  });

  test("takes whole blocks, and as many bytes as it says", async () => {
    const { path, converted } = await convert([entry("f", { content: "x".repeat(4097) })]);
    // The superblock's, two of content, one of inodes.
    expect(converted.imageBytes).toBe(4 * 4096);
    expect((await stat(path)).size).toBe(converted.imageBytes);
    expect((await readFile(path)).readUInt32LE(1024)).toBe(0xe0f5e1e2);
  });
});

test("a directory's size is that of its blocks, the last only as far as it is used", () => {
  expect(directorySize([".", ".."])).toBe(2 * 12 + 3);
  // 15 names of 255 bytes take 4005 bytes with their entries; the next one starts a block.
  const names = Array.from({ length: 16 }, () => "n".repeat(255));
  expect(directorySize(names.slice(1))).toBe(4005);
  expect(directorySize(names)).toBe(4096 + 267);
});

describe("limits", () => {
  const refused = async (tar: Buffer, limits: Partial<LayerLimits>): Promise<void> => {
    const path = join(directory, "refused");
    const source = decompress(chunked(gzipSync(tar), 65_536));
    await expect(convertLayer(source, path, { ...defaultLimits, ...limits })).rejects.toMatchObject({
      code: "layer_too_large",
    });
    await rm(path, { force: true });
  };

  test("a decompression bomb ends at its limit, whether it is content, entries or what follows the archive", async () => {
    const bomb = await collect(writeTar([entry("zeros", { content: Buffer.alloc(40 << 20) })]));
    await refused(bomb, { tarBytes: 4 << 20 });
    await refused(await collect(writeTar(Array.from({ length: 5000 }, (_, i) => entry(String(i))))), { entries: 4999 });
    await refused(Buffer.concat([Buffer.alloc(1024), Buffer.alloc(20 << 20)]), { tarBytes: 4 << 20 });
  });
});
