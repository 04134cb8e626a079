import { randomBytes } from "node:crypto";
import { Readable } from "node:stream";
import { gunzipSync, gzipSync, zstdCompressSync, zstdDecompressSync } from "node:zlib";
import { describe, expect, test } from "vitest";
import { coalesce } from "../../src/image/byte-reader.ts";
import { compress, decompress, detectCompression } from "../../src/image/compress.ts";
import { Tee } from "../../src/image/tee.ts";
import { breaking, chunked, collect, gather } from "../support/image.ts";

const plain = Buffer.concat([randomBytes(300_000), Buffer.alloc(3_000_000, "a"), randomBytes(10)]);

describe("decompressing", () => {
  test.each<[string, Buffer]>([
    ["gzip", gzipSync(plain)],
    ["gzip of two members", Buffer.concat([gzipSync(plain.subarray(0, 1000)), gzipSync(plain.subarray(1000))])],
    ["zstd", zstdCompressSync(plain)],
    ["nothing", plain],
  ])("%s, in pieces of any size", async (_, bytes) => {
    for (const size of [1000, 65_536, bytes.length]) {
      expect((await collect(decompress(chunked(bytes, size)))).equals(plain)).toBe(true);
    }
  });

  test("empty and very short streams are plain", async () => {
    expect(await collect(decompress(chunked(Buffer.alloc(0), 1)))).toEqual(Buffer.alloc(0));
    expect(await collect(decompress(chunked(Buffer.from("ab"), 1)))).toEqual(Buffer.from("ab"));
    expect(detectCompression(Buffer.from([0x52, 0x2a, 0x4d, 0x18]))).toBe("zstd");
  });

  test.each<[string, Buffer]>([
    ["gzip that is cut", gzipSync(plain).subarray(0, 100_000)],
    ["gzip that was changed", Buffer.from(gzipSync(plain)).fill(0xff, 100_000, 100_100)],
    ["zstd that is cut", zstdCompressSync(plain).subarray(0, 100_000)],
    ["zstd that was changed", Buffer.from(zstdCompressSync(plain)).fill(0xff, 4, 20)],
  ])("%s is an error of ours", async (_, bytes) => {
    await expect(collect(decompress(chunked(bytes, 65_536)))).rejects.toMatchObject({ code: "invalid_image" });
  });

  test("an error of the source is passed on as it is", async () => {
    await expect(collect(decompress(breaking([gzipSync(plain).subarray(0, 100_000)], "line cut")))).rejects.toThrow(
      "line cut",
    );
  });

  test("a bomb is read only as far as its reader goes", async () => {
    const bomb = gzipSync(Buffer.alloc(200 << 20), { level: 1 });
    let read = 0;
    const closed = Promise.withResolvers<undefined>();
    async function* source(): AsyncGenerator<Uint8Array> {
      try {
        yield* chunked(bomb, 4096);
      } finally {
        closed.resolve(undefined);
      }
    }
    for await (const chunk of decompress(source())) {
      read += chunk.length;
      if (read > 10 << 20) break;
    }
    expect(read).toBeLessThan(20 << 20);
    await closed.promise;
  });
});

test("compressing the same gives the same, with no time in it", async () => {
  for (const [compression, unpack] of [
    ["gzip", gunzipSync],
    ["zstd", zstdDecompressSync],
  ] as const) {
    const first = await collect(compress(chunked(plain, 65_536), compression));
    expect(await collect(compress(chunked(plain, 1000), compression))).toEqual(first);
    expect(unpack(first).equals(plain)).toBe(true);
    expect(detectCompression(first)).toBe(compression);
    if (compression === "gzip") expect(first.readUInt32LE(4)).toBe(0);
  }
});

test("small chunks are put together", async () => {
  const sizes = (await gather(coalesce(chunked(Buffer.alloc(1050), 100), 256))).map((chunk) => chunk.length);
  expect(sizes).toEqual([300, 300, 300, 150]);
});

describe("two readers of one stream", () => {
  const numbers = async function* (count: number, ended: { value: boolean }): AsyncGenerator<number> {
    try {
      for await (const i of Readable.from(all(count)) as AsyncIterable<number>) yield i;
    } finally {
      ended.value = true;
    }
  };
  const all = (count: number): number[] => Array.from({ length: count }, (_, i) => i);

  test("see all of it, whichever is slower", async () => {
    const ended = { value: false };
    const { branches } = new Tee(numbers(1000, ended));
    const slow = async (): Promise<number[]> => {
      const seen: number[] = [];
      for await (const one of branches[1]) {
        seen.push(one);
        await new Promise((resolve) => setImmediate(resolve));
      }
      return seen;
    };
    expect(await Promise.all([gather(branches[0]), slow()])).toEqual([all(1000), all(1000)]);
    expect(ended.value).toBe(true);
  });

  test("the faster waits for the slower, and goes on alone when that stops", async () => {
    const ended = { value: false };
    const { branches } = new Tee(numbers(100, ended));
    const fast = branches[0][Symbol.asyncIterator]();
    const slow = branches[1][Symbol.asyncIterator]();
    const taken: number[] = [];
    const reading = (async () => {
      for (let next = await fast.next(); next.done !== true; next = await fast.next()) taken.push(next.value);
    })();
    await new Promise((resolve) => setImmediate(resolve));
    expect(taken.length).toBe(8);
    await slow.next();
    await new Promise((resolve) => setImmediate(resolve));
    expect(taken.length).toBe(9);
    await slow.return?.();
    await reading;
    expect(taken).toEqual(all(100));
  });

  test("an error of the source reaches both; stopping ends both, also the one that waits", async () => {
    const failed = new Tee(breaking([1], "line cut"));
    await Promise.all(failed.branches.map((branch) => expect(gather(branch)).rejects.toThrow("line cut")));
    const ended = { value: false };
    const stopped = new Tee(numbers(100, ended));
    const waiting = expect(gather(stopped.branches[0])).rejects.toThrow("enough");
    await new Promise((resolve) => setImmediate(resolve));
    await stopped.stop(new Error("enough"));
    await waiting;
    await expect(gather(stopped.branches[1])).rejects.toThrow("enough");
    expect(ended.value).toBe(true);
  });
});
