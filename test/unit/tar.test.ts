import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { type LayerEntry, noXattrs } from "../../src/image/layer-entry.ts";
import { blockSize, formatHeader, parseHeader } from "../../src/image/tar-header.ts";
import { formatPax, formatTime, parsePax, parseTime } from "../../src/image/tar-pax.ts";
import { readTar } from "../../src/image/tar-read.ts";
import { writeTar } from "../../src/image/tar-write.ts";
import { chunked, collect, entry, gather } from "../support/image.ts";

async function readAll(tar: Uint8Array, chunk = 1 << 20): Promise<(Omit<LayerEntry, "content"> & { text: string })[]> {
  const all = [];
  for await (const { content, ...rest } of readTar(chunked(tar, chunk))) {
    const parts: Uint8Array[] = [];
    for await (const part of content) parts.push(Buffer.from(part));
    all.push({ ...rest, text: Buffer.concat(parts).toString("latin1") });
  }
  return all;
}

function header(more: Partial<Parameters<typeof formatHeader>[0]>): Buffer {
  return formatHeader({
    name: "f",
    mode: 0o644,
    uid: 0,
    gid: 0,
    size: 0,
    mtime: 0,
    typeFlag: "0",
    linkName: "",
    ...more,
  });
}

function withChecksum(block: Buffer): Buffer {
  block.fill(0x20, 148, 156);
  const sum = block.reduce((total, byte) => total + byte, 0);
  block.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148, "latin1");
  return block;
}

const padded = (data: Buffer): Buffer =>
  Buffer.concat([data, Buffer.alloc((blockSize - (data.length % blockSize)) % blockSize)]);
const end = Buffer.alloc(2 * blockSize);

const byteString = (minLength: number, maxLength: number): fc.Arbitrary<string> =>
  fc
    .uint8Array({ minLength, maxLength })
    .map((bytes) => Buffer.from(bytes).toString("latin1").replaceAll("\0", "0").replace(/\/+$/, "x"));

const anyEntry = fc
  .record({
    path: byteString(1, 400),
    type: fc.constantFrom("file", "directory", "symlink", "hardlink", "fifo" as const),
    mode: fc.integer({ min: 0, max: 0o7777 }),
    uid: fc.integer({ min: 0, max: 2 ** 32 }),
    gid: fc.integer({ min: 0, max: 2 ** 32 }),
    mtime: fc.record({
      seconds: fc.integer({ min: -(2 ** 40), max: 2 ** 40 }),
      nanoseconds: fc.integer({ min: 0, max: 999_999_999 }),
    }),
    target: byteString(1, 300),
    text: byteString(0, 2000),
    xattrs: fc.dictionary(
      byteString(1, 30).map((name) => `user.${name.replaceAll("=", "-")}`),
      fc.uint8Array({ maxLength: 100 }),
    ),
  })
  .map(({ text, xattrs, target, ...rest }) =>
    entry(rest.path, {
      ...rest,
      target: rest.type === "symlink" || rest.type === "hardlink" ? target : "",
      xattrs: Object.keys(xattrs).length === 0 ? noXattrs : new Map(Object.entries(xattrs)),
      ...(rest.type === "file" ? { content: Buffer.from(text, "latin1") } : {}),
    }),
  );

describe("writing and reading", () => {
  test("gives back every entry to the byte, however the stream is cut", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(anyEntry, { maxLength: 6 }),
        fc.integer({ min: 1, max: 1500 }),
        async (entries, chunk) => {
          const back = await readAll(await collect(writeTar(entries)), chunk);
          const texts = await Promise.all(
            entries.map(async (one) => {
              const parts: Uint8Array[] = [];
              for await (const part of one.content) parts.push(part);
              return Buffer.concat(parts).toString("latin1");
            }),
          );
          expect(back).toEqual(
            entries.map((one, i) => ({
              ...one,
              content: undefined,
              path: one.type === "directory" ? `${one.path}/` : one.path,
              xattrs: new Map([...one.xattrs].map(([name, value]) => [name, Buffer.from(value)])),
              text: texts[i],
            })),
          );
        },
      ),
      { numRuns: 60 },
    );
  });

  test("content that was not read is skipped, and the rest of the stream is read", async () => {
    const tar = await collect(writeTar([entry("a", { content: "x".repeat(3000) }), entry("b", { content: "y" })]));
    let seen = 0;
    async function* counted(): AsyncGenerator<Uint8Array> {
      for await (const chunk of chunked(Buffer.concat([tar, Buffer.from("trailing")]), 100)) {
        seen += chunk.length;
        yield chunk;
      }
    }
    const names: string[] = [];
    for await (const one of readTar(counted())) names.push(one.path);
    expect(names).toEqual(["a", "b"]);
    expect(seen).toBe(tar.length + "trailing".length);
  });

  test("content of another size than was said is an error, not a shifted archive", async () => {
    for (const [size, said] of [
      [5, 4],
      [4, 5],
      [0, 1],
      [20_000, 1],
      [1, 20_000],
      [20_001, 20_000],
    ] as const) {
      const wrong = entry("a", { content: Buffer.alloc(size), size: said });
      await expect(collect(writeTar([wrong, entry("b")]))).rejects.toThrow(`${String(said)} bytes`);
    }
  });

  test("no piece is empty, whatever the sizes of files and of what they come in", async () => {
    for (const size of [0, 1, 512, 16_383, 16_384, 16_385, 32_768]) {
      for (const piece of [1, 512, 32_768]) {
        const content = chunked(Buffer.alloc(size, 1), piece);
        const pieces = await gather(writeTar([{ ...entry("a"), size, content }]));
        expect(pieces.map(({ length }) => length)).not.toContain(0);
        expect(Buffer.concat(pieces)).toHaveLength(512 + Math.ceil(size / 512) * 512 + 1024);
      }
    }
  });
});

describe("reading what others write", () => {
  test("a prefix, a v7 directory, a long GNU name and link", async () => {
    const ustar = header({ name: "name" });
    ustar.write("some/prefix", 345, "latin1");
    const v7 = header({ name: "olddir/" });
    v7.fill(0, 257, 512);
    const long = "long/".repeat(60);
    const tar = Buffer.concat([
      withChecksum(ustar),
      withChecksum(v7),
      header({ name: "././@LongLink", typeFlag: "L", size: long.length + 1 }),
      padded(Buffer.from(`${long}\0`)),
      header({ name: "././@LongLink", typeFlag: "K", size: 4 }),
      padded(Buffer.from("goal")),
      header({ typeFlag: "2", linkName: "cut" }),
      header({ name: "pax_global_header", typeFlag: "g", size: 20 }),
      padded(Buffer.from("20 comment=abcdefgh\n")),
      header({ name: "last" }),
      end,
    ]);
    const all = await readAll(tar, 700);
    expect(all.map(({ path, type, target }) => [path, type, target])).toEqual([
      ["some/prefix/name", "file", ""],
      ["olddir/", "directory", ""],
      [long, "symlink", "goal"],
      ["last", "file", ""],
    ]);
  });

  test("numbers in base 256, also negative, and signed checksums", () => {
    const block = header({ name: "\xff\xfe" });
    Buffer.from([0x80, 0, 0, 0, 0xee, 0x6b, 0x28, 0x00]).copy(block, 108);
    Buffer.from([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe]).copy(block, 136);
    expect(parseHeader(withChecksum(block))).toMatchObject({ uid: 4_000_000_000, mtime: -2 });
    block.fill(0x20, 148, 156);
    const signed = block.reduce((total, byte) => total + (byte > 127 ? byte - 256 : byte), 0);
    block.write(`${signed.toString(8).padStart(6, "0")}\0 `, 148, "latin1");
    expect(parseHeader(block)?.name).toBe("\xff\xfe");
  });

  test("a link or directory with a size has no content (as in Go's reader)", async () => {
    const tar = Buffer.concat([header({ name: "d", typeFlag: "5", size: 512 }), header({ name: "after" }), end]);
    expect((await readAll(tar)).map((one) => one.path)).toEqual(["d", "after"]);
  });

  test.each<[string, Buffer]>([
    ["a wrong checksum", Buffer.concat([header({}).fill(0x41, 0, 1), end])],
    ["an end within a header", header({}).subarray(0, 300)],
    ["an end within a file", Buffer.concat([header({ size: 1000 }), Buffer.alloc(512)])],
    ["an end within an extended header", Buffer.concat([header({ typeFlag: "x", size: 1000 }), Buffer.alloc(512)])],
    ["GNU sparse", Buffer.concat([header({ typeFlag: "S" }), end])],
    [
      "pax sparse",
      Buffer.concat([
        header({ typeFlag: "x", size: 22 }),
        padded(Buffer.from("22 GNU.sparse.major=1\n")),
        header({}),
        end,
      ]),
    ],
    ["an unknown type", Buffer.concat([header({ typeFlag: "Z" }), end])],
    ["a number that is none", Buffer.concat([withChecksum(header({}).fill(0x39, 124, 135)), end])],
    ["text", Buffer.from("this is not a tar archive".repeat(100))],
  ])("refuses %s", async (_, tar) => {
    await expect(readAll(tar)).rejects.toMatchObject({ code: "invalid_image" });
  });

  test("refuses a huge extended header before it is read", async () => {
    await expect(readAll(header({ typeFlag: "x", size: 2 ** 30 }))).rejects.toMatchObject({ code: "layer_too_large" });
  });

  test("any bytes are an archive or an error of ours, never another", async () => {
    await fc.assert(
      fc.asyncProperty(fc.uint8Array({ maxLength: 3000 }), fc.uint8Array({ maxLength: 600 }), async (bytes, pax) => {
        const tar = Buffer.concat([header({ typeFlag: "x", size: pax.length }), padded(Buffer.from(pax)), bytes]);
        await readAll(tar).catch((error: unknown) => {
          expect(error).toMatchObject({ name: "BerthError" });
        });
      }),
      { numRuns: 200 },
    );
  });
});

describe("pax", () => {
  test("times: before 1970, with and without a fraction", () => {
    expect(parseTime("-1.5")).toEqual({ seconds: -2, nanoseconds: 500_000_000 });
    expect(parseTime("12.0000000019")).toEqual({ seconds: 12, nanoseconds: 1 });
    expect(parseTime("-3")).toEqual({ seconds: -3, nanoseconds: 0 });
    fc.assert(
      fc.property(
        fc.integer({ min: -(2 ** 40), max: 2 ** 40 }),
        fc.integer({ min: 0, max: 999_999_999 }),
        (seconds, nanoseconds) => {
          expect(parseTime(formatTime({ seconds, nanoseconds }))).toEqual({ seconds, nanoseconds });
        },
      ),
    );
  });

  test("a record's length counts its own digits, at every number of digits", () => {
    for (let length = 1; length < 1100; length++) {
      const path = "p".repeat(length);
      expect(parsePax(formatPax({ path }))).toEqual({ path });
    }
  });

  test.each([
    "5 a=b",
    "99 path=x\n",
    "x path=x\n",
    "0 \n",
    "9 pathxx\n",
    "10 path=a\0\n",
    "11 mtime=x\n",
    "10 size=-\n",
  ])("refuses %j", (record) => {
    expect(() => parsePax(Buffer.from(record))).toThrow(expect.objectContaining({ code: "invalid_image" }));
  });
});
