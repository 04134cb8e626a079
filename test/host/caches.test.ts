import { execFileSync } from "node:child_process";
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { Disks } from "../../src/isolation/apply/disk.ts";
import { unmount } from "../../src/isolation/apply/mount-api.ts";
import { mountsBelow } from "../../src/isolation/apply/mount-table.ts";
import { type CacheLimits, Caches, type OpenCache } from "../../src/isolation/caches.ts";
import { Owned } from "../support/ownership.ts";

const MiB = 1024 * 1024;
const roomy: CacheLimits = { cacheBytes: 64 * MiB, projectBytes: 1024 * MiB, projectCaches: 100, projectInUse: 100 };
let owned: Owned;
let directory: string;
let disks: Disks;

beforeEach(() => {
  owned = Owned.directory("berth-caches-");
  ({ directory } = owned.footprint);
  mkdirSync(join(directory, "disks"));
  disks = new Disks(join(directory, "disks"));
});
afterEach(async () => {
  for (const { path } of mountsBelow(directory).toReversed()) unmount(path);
  await owned.remove();
});

const project = () => join(directory, "caches", "prj_one");
const images = () => readdirSync(project()).filter((name) => name.endsWith(".img"));
const mounted = () => mountsBelow(join(directory, "mounts")).length;

function makeCaches(limits: Partial<CacheLimits> = {}): Caches {
  const layout = { caches: join(directory, "caches"), cacheMounts: join(directory, "mounts") };
  return new Caches(disks, layout, { ...roomy, ...limits });
}

function open(caches: Caches, id: string, projectId = "prj_one"): Promise<OpenCache> {
  const signal = new AbortController().signal;
  return caches.open({ projectId, id, sharing: "shared", begin: () => Promise.resolve(), signal });
}

/** Makes a cache that holds a file of its name, was used so many seconds ago, and is not mounted: nothing writes to it any more. Its disk. */
async function makeOld(id: string, seconds: number, bytes = 1): Promise<string[]> {
  const caches = makeCaches();
  const before = new Set(existsSync(project()) ? images() : []);
  const cache = await open(caches, id);
  writeFileSync(`${cache.path}/${id}`, Buffer.alloc(bytes, 1));
  cache.close();
  const made = images().filter((name) => !before.has(name));
  age(made, 120);
  await caches.tidy();
  age(made, seconds);
  return made;
}

function age(names: readonly string[], seconds: number): void {
  const time = Date.now() / 1000 - seconds;
  for (const name of names) utimesSync(join(project(), name), time, time);
}

/** Which of the caches are still what they were. Those that are not are made anew. */
async function kept(caches: Caches, ids: readonly string[]): Promise<string[]> {
  const found: string[] = [];
  for (const id of ids) {
    const cache = await open(caches, id);
    if (existsSync(`${cache.path}/${id}`)) found.push(id);
    cache.close();
  }
  return found;
}

test("a cache that is full ends what writes to it; a larger one takes the same", async () => {
  const write = async (caches: Caches, id: string) => {
    const cache = await open(caches, id);
    try {
      writeFileSync(`${cache.path}/much`, Buffer.alloc(32 * MiB, 1));
    } finally {
      cache.close();
    }
  };
  await expect(write(makeCaches({ cacheBytes: 16 * MiB }), "small")).rejects.toThrow("ENOSPC");
  await write(makeCaches(), "large");
  // What is full can be opened and emptied.
  const full = await open(makeCaches(), "small");
  rmSync(`${full.path}/much`);
  writeFileSync(`${full.path}/little`, "x");
  full.close();
});

test("what links in a cache lead to stays as it is; followed as the host, they lead there", async () => {
  const canary = join(directory, "canary");
  mkdirSync(canary);
  writeFileSync(`${canary}/file`, "of the host");
  const caches = makeCaches();
  const cache = await open(caches, "links");
  for (const [name, target] of [
    ["file", `${canary}/file`],
    ["all", canary],
    ["up", `${"../".repeat(20)}${canary.slice(1)}`],
  ] as const)
    symlinkSync(target, `${cache.path}/${name}`);
  expect(readFileSync(`${cache.path}/file`, "utf8")).toBe("of the host");
  expect(readFileSync(`${cache.path}/up/file`, "utf8")).toBe("of the host");
  // As one that could not be filled: it is removed, and filled anew.
  renameSync(cache.path, `${cache.path}.new`);
  cache.close();
  age(images(), 120);
  await caches.tidy();
  const again = await open(caches, "links");
  expect(readdirSync(again.path)).toEqual([]);
  expect(readdirSync(join(again.path, ".."))).not.toContain("content.new");
  symlinkSync(canary, `${again.path}/all`);
  again.close();
  expect(await caches.prune("prj_one")).toBeGreaterThan(0);
  expect(readFileSync(`${canary}/file`, "utf8")).toBe("of the host");
});

test("set-user-id files of a cache give nothing; on a disk that is mounted without that protection they do", async () => {
  const userOf = (path: string): string => {
    copyFileSync("/usr/bin/id", `${path}/id`);
    chmodSync(`${path}/id`, 0o4755);
    return execFileSync(`${path}/id`, ["-u"], { uid: 65_534, gid: 65_534, encoding: "utf8" }).trim();
  };
  chmodSync(directory, 0o755);
  const cache = await open(makeCaches(), "trap");
  chmodSync(join(directory, "mounts"), 0o755);
  expect(userOf(cache.path)).toBe("65534");
  cache.close();
  const place = join(directory, "open");
  mkdirSync(place);
  await disks.createAt(join(directory, "open.img"), 64 * MiB);
  await disks.mountAt(join(directory, "open.img"), place);
  expect(userOf(place)).toBe("0");
});

test("those that were not used for a week go, those that are idle are unmounted, those in use stay", async () => {
  const week = 7 * 24 * 3600;
  await makeOld("recent", week - 60);
  const old = await makeOld("old", week - 60);
  const caches = makeCaches();
  const used = await open(caches, "used");
  writeFileSync(`${used.path}/used`, "");
  const before = images();
  (await open(caches, "idle")).close();
  age(
    images().filter((name) => !before.includes(name)),
    120,
  );
  expect(mounted()).toBe(2);
  age(old, week + 60);
  await caches.tidy();
  expect(mounted()).toBe(1);
  expect(await kept(caches, ["old", "recent"])).toEqual(["recent"]);
  age(images(), week + 60);
  await caches.tidy();
  expect(images()).toHaveLength(1);
  expect(existsSync(`${used.path}/used`)).toBe(true);
  used.close();
});

test("the oldest go when a project has too many bytes of them", async () => {
  await makeOld("oldest", 30, 8 * MiB);
  await makeOld("middle", 20, 20 * MiB);
  await makeOld("newest", 10, 12 * MiB);
  const caches = makeCaches({ projectBytes: 36 * MiB });
  await caches.tidy();
  expect(await kept(caches, ["oldest", "middle", "newest"])).toEqual(["middle", "newest"]);
});

test("a new one takes the place of the oldest that nobody uses; when all are in use there is no place", async () => {
  for (const [id, seconds] of [
    ["a", 40],
    ["b", 30],
    ["c", 20],
  ] as const)
    await makeOld(id, seconds);
  const caches = makeCaches({ projectCaches: 3, projectInUse: 3 });
  const first = await open(caches, "a");
  age(images(), 50);
  const others = [await open(caches, "d"), await open(caches, "e")];
  expect(images()).toHaveLength(3);
  expect(existsSync(`${first.path}/a`)).toBe(true);
  await expect(open(caches, "f")).rejects.toMatchObject({ code: "quota_exceeded" });
  expect(images()).toHaveLength(3);
  // Another project has its own; and a place that is given back can be had.
  (await open(caches, "f", "prj_two")).close();
  first.close();
  for (const cache of [await open(caches, "f"), ...others]) cache.close();
  expect(await caches.prune("prj_one")).toBeGreaterThan(0);
  expect(images()).toEqual([]);
});

test("while what is in use holds too much, no other is opened; with a higher limit it is", async () => {
  const caches = makeCaches({ projectBytes: 24 * MiB });
  const used = [await open(caches, "a"), await open(caches, "b")];
  for (const { path } of used) writeFileSync(`${path}/much`, Buffer.alloc(16 * MiB, 1));
  await expect(open(caches, "c")).rejects.toMatchObject({ code: "quota_exceeded" });
  await expect(open(caches, "c")).rejects.toThrow(/ hold \d+ bytes, more than 25165824\.$/);
  expect(images()).toHaveLength(2);
  // Whoever has one open already is no further cache; another project has its own.
  (await open(caches, "a")).close();
  (await open(caches, "c", "prj_two")).close();
  // The oldest that is given back goes, and there is room.
  used[0]?.close();
  const third = await open(caches, "c");
  expect(images()).toHaveLength(2);
  expect(existsSync(`${used[1]?.path ?? ""}/much`)).toBe(true);
  for (const cache of [third, ...used]) cache.close();
  const unbounded = makeCaches();
  for (const id of ["d", "e", "f"]) {
    const cache = await open(unbounded, id);
    used.push(cache);
    writeFileSync(`${cache.path}/much`, Buffer.alloc(16 * MiB, 1));
  }
  expect(images()).toHaveLength(5);
  for (const cache of used) cache.close();
});

test("who waits for a cache that is being filled can go; it is in use until it is filled, and then as it should be", async () => {
  const caches = makeCaches({ projectInUse: 1 });
  const filled = Promise.withResolvers<undefined>();
  const filling = Promise.withResolvers<undefined>();
  const cancel = new AbortController();
  const begin = async (path: string) => {
    filling.resolve(undefined);
    await filled.promise;
    writeFileSync(`${path}/seed`, "");
  };
  const waiting = caches.open({ projectId: "prj_one", id: "s", sharing: "shared", begin, signal: cancel.signal });
  await filling.promise;
  cancel.abort(new Error("cancelled"));
  await expect(waiting).rejects.toThrow("cancelled");
  await expect(open(caches, "other")).rejects.toMatchObject({ code: "quota_exceeded" });
  filled.resolve(undefined);
  const next = await open(caches, "s");
  expect(readdirSync(next.path)).toEqual(["seed"]);
  next.close();
});

test("so many are used at once and no more, private copies as well", async () => {
  const caches = makeCaches({ projectInUse: 2 });
  const request = { projectId: "prj_one", id: "p", sharing: "private", begin: () => Promise.resolve() } as const;
  const copy = () => caches.open({ ...request, signal: new AbortController().signal });
  const [one, two] = [await copy(), await copy()];
  await expect(copy()).rejects.toMatchObject({ code: "quota_exceeded" });
  // Closing twice gives back one place.
  one.close();
  one.close();
  const three = await copy();
  await expect(copy()).rejects.toMatchObject({ code: "quota_exceeded" });
  for (const cache of [two, three]) cache.close();
});

test("a cache that several open at once is made once, and is refused to all of them or to none", async () => {
  const caches = makeCaches({ projectInUse: 1 });
  // From here on a disk is made faster than a directory.
  (await open(caches, "first", "prj_other")).close();
  const [one, other] = await Promise.all([open(caches, "new"), open(caches, "new")]);
  expect(one.path).toBe(other.path);
  expect(images()).toHaveLength(1);
  const refused = await Promise.allSettled([open(caches, "more"), open(caches, "more")]);
  const quota = expect.objectContaining({ code: "quota_exceeded" }) as unknown;
  expect(refused).toEqual([
    { status: "rejected", reason: quota },
    { status: "rejected", reason: quota },
  ]);
  for (const cache of [one, other]) cache.close();
  (await open(caches, "more")).close();
});
