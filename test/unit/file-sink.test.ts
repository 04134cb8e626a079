import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { FileSink } from "../../src/image/file-sink.ts";

// Files that are written share buffers: what is one's must never be in another's.

let directory: string;
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "berth-sink-"));
});
afterEach(async () => {
  await rm(directory, { recursive: true, force: true });
});

const mebibyte = 1 << 20;
const create = (name: string) => FileSink.create(join(directory, name), 0o600);
const filled = (letter: string, bytes: number) => Buffer.alloc(bytes, letter);

test("a file that is closed while it is written to writes nothing any more, and gives each buffer away once", async () => {
  const cut = await create("cut");
  const writing = cut.write(filled("a", 4 * mebibyte));
  const [written] = await Promise.allSettled([writing, cut.close(), cut.close()]);
  expect(written).toMatchObject({ status: "rejected" });
  expect((await readFile(join(directory, "cut"))).length).toBe(0);
  // Files that are written side by side, with the buffers that others had.
  const names = ["b", "c", "d"];
  const sinks = await Promise.all(names.map(create));
  const bytes = 2 * mebibyte + 5;
  const contents = names.map((name) => filled(name, bytes));
  await Promise.all(sinks.map((sink, index) => sink.write(contents[index] ?? filled("", 0))));
  await Promise.all(sinks.map((sink) => sink.writeOut()));
  for (const [index, name] of names.entries()) {
    expect((await readFile(join(directory, name))).equals(contents[index] ?? filled("", 0))).toBe(true);
  }
  await Promise.all(sinks.map((sink) => sink.close()));
});

test("what is closed takes no more bytes", async () => {
  const sink = await create("one");
  await sink.write(filled("a", 10));
  await sink.close();
  await expect(sink.write(filled("a", 10))).rejects.toThrow();
  await expect(sink.sync()).rejects.toThrow();
});
