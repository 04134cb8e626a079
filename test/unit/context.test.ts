import { mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { open } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, expect, test } from "vitest";
import { type Context, readContext } from "../../src/engine/build/context.ts";
import { writeTar } from "../../src/image/tar-write.ts";
import { chunked, collect, entry } from "../support/image.ts";

const directory = mkdtempSync(join(tmpdir(), "berth-context-test-"));
afterAll(() => rmSync(directory, { recursive: true, force: true }));

/** Paths, digests and contents of what a context has. */
async function shown({ tree, bytes }: Context, paths: readonly string[]) {
  const all: unknown[] = [bytes];
  for (const path of paths) {
    const found = await tree.get(path);
    if (found?.type !== "file") throw new Error(`${path} is no file`);
    all.push([path, found.size, found.sha256, (await collect(tree.read(path, found))).toString("latin1")]);
  }
  return all;
}

test("files of a plain tar are read where they are, and are what a spool of them would be", async () => {
  const sizes = fc.constantFrom(0, 1, 511, 512, 513, 5000, 70_000);
  const one = fc.record({ size: sizes, long: fc.boolean() });
  await fc.assert(
    fc.asyncProperty(
      fc.array(one, { minLength: 1, maxLength: 8 }),
      fc.integer({ min: 1, max: 3000 }),
      async (all, piece) => {
        const paths = all.map(({ long }, i) => `/${String(i)}${long ? "n".repeat(250) : ""}`);
        const content = (i: number, size: number) => Buffer.alloc(size, `${String(i)}content`);
        const entries = all.map(({ size }, i) => entry(paths[i]?.slice(1) ?? "", { content: content(i, size) }));
        const tar = await collect(writeTar(entries));
        const path = join(directory, "tar");
        writeFileSync(path, tar);
        const inPlace = await readContext(chunked(tar, piece), await open(path, "r"));
        const spooled = await readContext(chunked(tar, piece), join(directory, "spool"));
        try {
          // The spool has no name any more, and the tar is nobody's to remove.
          expect(readdirSync(directory)).toEqual(["tar"]);
          expect(await shown(inPlace, paths)).toEqual(await shown(spooled, paths));
        } finally {
          await inPlace.close();
          await spooled.close();
        }
      },
    ),
    { numRuns: 40 },
  );
});

test("what is too large, or no tar, is refused in both ways, and the file is let go of", async () => {
  const tar = await collect(writeTar([entry("a", { content: "12345" }), entry("b", { content: "67890" })]));
  const path = join(directory, "tar");
  writeFileSync(path, tar);
  for (const [bytes, limits] of [
    [tar, { entries: 10, bytes: 9 }],
    [tar, { entries: 1, bytes: 100 }],
    [tar.subarray(0, 700), { entries: 10, bytes: 100 }],
  ] as const) {
    const file = await open(path, "r");
    await expect(readContext(chunked(bytes, 100), file, limits)).rejects.toMatchObject({ code: "invalid_context" });
    expect(file.fd).toBe(-1);
    await expect(readContext(chunked(bytes, 100), join(directory, "spool"), limits)).rejects.toMatchObject({
      code: "invalid_context",
    });
  }
  expect(readdirSync(directory)).toEqual(["tar"]);
});
