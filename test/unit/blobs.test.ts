import { randomBytes } from "node:crypto";
import { chown, mkdir, mkdtemp, readdir, readFile, rm, stat, symlink, utimes, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import { afterEach, beforeEach, expect, test } from "vitest";
import { BerthError } from "../../src/core/errors.ts";
import { digestOf } from "../../src/image/digest.ts";
import { FileBlobs } from "../../src/image/file-blobs.ts";
import { breaking, collect, gather } from "../support/image.ts";

let directory: string;
let blobs: FileBlobs;
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "berth-blobs-"));
  blobs = new FileBlobs(directory);
});
afterEach(async () => {
  await rm(directory, { recursive: true, force: true });
});

const content = randomBytes(3_000_000);
const digest = digestOf(content);
const source = (bytes: Uint8Array = content): Readable =>
  Readable.from([bytes.subarray(0, 1000), bytes.subarray(1000)]);
const files = async (): Promise<string[]> => [
  ...(await readdir(join(directory, "tmp"))),
  ...(await readdir(join(directory, "sha256"))),
];

test("what was put is there, whole or in part, once", async () => {
  expect(await blobs.size(digest)).toBeNull();
  const puts = [1, 2, 3].map(() => blobs.put(source(), { digest, maxBytes: content.length }));
  expect(await Promise.all(puts)).toEqual(Array.from({ length: 3 }, () => ({ digest, sizeBytes: content.length })));
  expect(await files()).toEqual([digest.slice(7)]);
  expect(await blobs.size(digest)).toBe(content.length);
  expect((await collect(await blobs.open(digest))).equals(content)).toBe(true);
  expect(await collect(await blobs.open(digest, { start: 5, end: 9 }))).toEqual(content.subarray(5, 10));
  expect(await collect(await blobs.open(digest, { start: content.length - 3 }))).toEqual(content.subarray(-3));
  expect(await gather(blobs.list())).toEqual([digest]);
  await blobs.delete(digest);
  await blobs.delete(digest);
  await expect(blobs.open(digest)).rejects.toMatchObject({ code: "not_found" });
});

test("nothing stays of what is wrong, too large, refused or broken off", async () => {
  const confirm = (): Promise<void> => Promise.reject(new Error("refused"));
  const other = digestOf(Buffer.from("other"));
  await expect(blobs.put(source(), { digest: other, maxBytes: 1e9 })).rejects.toMatchObject({
    code: "digest_mismatch",
  });
  await expect(blobs.put(source(), { maxBytes: 2_999_999 })).rejects.toMatchObject({ code: "body_too_large" });
  await expect(blobs.put(source(), { maxBytes: 1e9, confirm })).rejects.toThrow("refused");
  await expect(blobs.put(breaking([content], "line cut"), { maxBytes: 1e9 })).rejects.toThrow("line cut");
  expect(await files()).toEqual([]);
});

test("what comes is taken as long as there is room, and nothing stays of it when there is none left", async () => {
  const room = { times: Number.POSITIVE_INFINITY };
  const full = new BerthError("disk_full", "no room");
  const asked: string[] = [];
  const store = new FileBlobs(directory, undefined, (place) => {
    asked.push(place);
    if (--room.times < 0) throw full;
  });
  const large = () => Readable.from(Array.from({ length: 200 }, () => Buffer.alloc(1 << 20)));
  const { digest: stored } = await store.put(large(), { maxBytes: 1e9 });
  // At its beginning, and after each 64 MiB.
  expect(asked).toEqual([directory, directory, directory, directory]);
  await store.delete(stored);
  for (const times of [0, 2]) {
    room.times = times;
    await expect(store.put(large(), { maxBytes: 1e9 })).rejects.toBe(full);
    expect(await files()).toEqual([]);
  }
});

test("only digests are names", async () => {
  for (const name of [
    "../../etc/passwd",
    "sha256:../x",
    "sha256:ABC",
    `sha256:${"A".repeat(64)}`,
    `sha512:${"a".repeat(128)}`,
  ]) {
    await expect(blobs.open(name)).rejects.toMatchObject({ code: "invalid_reference" });
    await expect(blobs.delete(name)).rejects.toMatchObject({ code: "invalid_reference" });
  }
});

test("a symlink in the place of a blob is not followed", async () => {
  await mkdir(join(directory, "sha256"));
  await symlink("/etc/hostname", join(directory, "sha256", digest.slice(7)));
  await expect(blobs.open(digest)).rejects.toMatchObject({ code: "ELOOP" });
});

test("what is there already is not stored again, and is as new; what only looks like it is replaced", async () => {
  const path = join(directory, "sha256", digest.slice(7));
  const put = () => blobs.put(source(), { digest, maxBytes: content.length });
  await put();
  const { ino } = await stat(path);
  await utimes(path, 1, 1);
  expect(await put()).toEqual({ digest, sizeBytes: content.length });
  expect((await stat(path)).ino).toBe(ino);
  await blobs.deleteOlder(60_000, new Map());
  expect(await blobs.size(digest)).toBe(content.length);
  const elsewhere = join(directory, "elsewhere");
  for (const other of [Buffer.alloc(content.length), Buffer.from("cut short")]) {
    await rm(path);
    await writeFile(elsewhere, other);
    await symlink(elsewhere, path);
    await put();
    expect((await collect(await blobs.open(digest))).equals(content)).toBe(true);
    expect((await readFile(elsewhere)).equals(other)).toBe(true);
  }
  await writeFile(path, "cut short");
  await put();
  expect(await blobs.size(digest)).toBe(content.length);
});

test.runIf(process.getuid?.() === 0)(
  "what root writes belongs to the store's owner and is not the world's to read",
  async () => {
    await chown(directory, 4321, 4322);
    await blobs.put(source(), { maxBytes: 1e9 });
    expect(await stat(join(directory, "sha256", digest.slice(7)))).toMatchObject({
      uid: 4321,
      gid: 4322,
      mode: 0o100640,
    });
    expect(await stat(join(directory, "sha256"))).toMatchObject({ uid: 4321, gid: 4322 });
  },
);

test("what a dead writer left goes, what is being written stays", async () => {
  await blobs.put(source(), { maxBytes: 1e9 });
  for (const name of ["old", "new"]) await writeFile(join(directory, "tmp", name), "");
  await utimes(join(directory, "tmp", "old"), 1, 1);
  await blobs.tidy(60_000);
  expect(await files()).toEqual(["new", digest.slice(7)]);
});
