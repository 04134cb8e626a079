import { execFileSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { chmodSync, chownSync, linkSync, lutimesSync, mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import { mkdir, mkdtemp, readdir, readFile, rm, stat, truncate, utimes, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { Readable } from "node:stream";
import { gunzipSync, gzipSync, zstdCompressSync, zstdDecompressSync } from "node:zlib";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import type { Layer } from "../../src/core/image.ts";
import { FileBlobs } from "../../src/image/file-blobs.ts";
import { LayerStore } from "../../src/image/layers.ts";
import { readTar } from "../../src/image/tar-read.ts";
import { writeTar } from "../../src/image/tar-write.ts";
import { readUpper } from "../../src/image/upper.ts";
import { breaking, collect, entry, gather, layerBlob, sha256 } from "../support/image.ts";
import { Owned } from "../support/ownership.ts";
import { listTree, type TreeListing } from "../support/tree.ts";

let owned: Owned;
let directory: string;
let blobs: FileBlobs;
let layers: LayerStore;
const mounted: string[] = [];

beforeEach(() => {
  owned = Owned.directory("berth-layers-");
  ({ directory } = owned.footprint);
  blobs = new FileBlobs(join(directory, "blobs"));
  layers = new LayerStore(join(directory, "layers"), blobs);
});
afterEach(async () => {
  for (const target of mounted.splice(0).reverse()) execFileSync("umount", [target]);
  await owned.remove();
});

const bytes = (blob: Uint8Array) => (): AsyncIterable<Uint8Array> => Readable.from([blob]);

async function mountPoint(): Promise<string> {
  return mkdtemp(join(directory, "mnt-"));
}

async function mountLayer(layer: Layer): Promise<string> {
  return mountImage(layers.path(layer.diffId));
}

async function mountImage(image: string): Promise<string> {
  const target = await mountPoint();
  execFileSync("mount", ["-t", "erofs", "-o", "ro,nodev", image, target]);
  mounted.push(target);
  return target;
}

async function mountOverlay(lowers: string[], upper: string): Promise<string> {
  const target = await mountPoint();
  const work = await mountPoint();
  const options = `lowerdir=${lowers.toReversed().join(":")},upperdir=${upper},workdir=${work},redirect_dir=off,metacopy=off`;
  execFileSync("mount", ["-t", "overlay", "overlay", "-o", options, target]);
  mounted.push(target);
  return target;
}

/** Takes in a tar as a layer. */
async function importTar(tar: Buffer, compress: (tar: Buffer) => Buffer = gzipSync): Promise<Layer> {
  const blob = compress(tar);
  const layer = { digest: sha256(blob), diffId: sha256(tar), sizeBytes: blob.length, mediaType: "" };
  await layers.import(bytes(blob), layer);
  return layer;
}

/** A tree with what is hard to keep: see the names. */
function makeTree(root: string): void {
  const at = (name: string): Buffer => Buffer.concat([Buffer.from(`${root}/`), Buffer.from(name, "latin1")]);
  mkdirSync(at("dir"));
  writeFileSync(at("dir/not-utf8-\xff\xfe"), "x");
  writeFileSync(at("empty"), "");
  writeFileSync(at("one-block"), randomBytes(4096));
  writeFileSync(at("large"), randomBytes(3_000_001));
  writeFileSync(at("setuid"), "s");
  chownSync(at("setuid"), 1000, 65_535);
  chmodSync(at("setuid"), 0o6755);
  linkSync(at("large"), at("dir/linked"));
  symlinkSync("../dir/./x", at("symlink"));
  symlinkSync("y".repeat(4000), at("long-symlink"));
  linkSync(at("symlink"), at("linked-symlink"));
  lutimesSync(at("symlink"), 1_234_567_890, 1_234_567_890);
  mkdirSync(at("sticky"));
  chmodSync(at("sticky"), 0o1777);
  execFileSync("mkfifo", [at("fifo").toString()]);
  // Sorts before and after the dots.
  for (const name of ["!", "+x", "-y", ".hidden", "..z", "0"]) writeFileSync(at(`sticky/${name}`), name);
  mkdirSync(at("many"));
  for (let i = 0; i < 1000; i++) writeFileSync(at(`many/${"n".repeat(i % 200)}${String(i)}`), String(i));
  execFileSync("touch", ["-d", "1969-12-31T23:59:58.250000001Z", at("empty").toString()]);
  writeFileSync(at("capable"), "c");
  execFileSync("setcap", ["cap_net_raw+ep", at("capable").toString()]);
  execFileSync("python3", [
    "-c",
    `import os; os.setxattr(b"${root}/empty", b"user.bin", bytes([0,255,10,61,0])); os.setxattr(b"${root}/dir", b"user.big", b"v"*3000)`,
  ]);
  const deep = Array.from({ length: 400 }, (_, i) => `d${String(i)}`).join("/");
  execFileSync("mkdir", ["-p", `${root}/${deep}`]);
}

const kept = (name: string): boolean => name.startsWith("user.") || name === "security.capability";

describe("converting", () => {
  test("an image shows what GNU tar extracts", async () => {
    const [source, extracted] = [join(directory, "source"), join(directory, "extracted")];
    await mkdir(source);
    await mkdir(extracted);
    makeTree(source);
    const pax = ["--format=pax", "--xattrs", "--xattrs-include=*", "--pax-option=delete=atime,delete=ctime"];
    const tar = execFileSync("tar", ["-C", source, ...pax, "-cf", "-", "."], { maxBuffer: 1 << 28 });
    await writeFile(join(directory, "t.tar"), tar);
    execFileSync("tar", ["-C", extracted, "--xattrs", "--xattrs-include=*", "-xpf", join(directory, "t.tar")]);
    const mount = await mountLayer(await importTar(tar));
    const expected = listTree(extracted);
    expect(Object.keys(expected).length).toBeGreaterThan(1400);
    expect(listTree(mount, { keep: kept })).toEqual(expected);
    expect(await stat(mount)).toMatchObject({ mode: (await stat(source)).mode });
    // GNU's own format has other long names and no xattrs; the old one has neither.
    const gnu = execFileSync("tar", ["-C", source, "--format=gnu", "-cf", "-", "."], { maxBuffer: 1 << 28 });
    const old = await mountLayer(await importTar(gnu, zstdCompressSync));
    const plain = listTree(old, { skipTimes: true });
    expect(plain).toEqual(listTree(source, { skipTimes: true, keep: () => false }));
  });

  test("the same layer gives the same image, byte for byte", async () => {
    const { layer, blob } = await layerBlob([entry("b", { content: "b" }), entry("a/c", { content: "c" })]);
    await layers.import(bytes(blob), layer);
    const first = await readFile(layers.path(layer.diffId));
    await layers.removeUnused(layer.diffId, 0, () => undefined);
    expect(await layers.has(layer)).toBe(false);
    await layers.ensure(layer);
    expect(await readFile(layers.path(layer.diffId))).toEqual(first);
  });

  test("what a layer writes as its tar is what its image shows, and an empty one is a layer too", async () => {
    const made = await layers.create([
      entry("etc", { type: "directory", mode: 0o750 }),
      entry("etc/x", { content: "x".repeat(5000) }),
    ]);
    const stored = gunzipSync(await collect(await blobs.open(made.digest)));
    expect(sha256(stored)).toBe(made.diffId);
    expect(execFileSync("tar", ["-tvf", "-"], { input: stored, encoding: "utf8" })).toMatch(
      /^drwxr-x--- 0\/0 .* etc\/\n-rw-r--r-- 0\/0 +5000 .* etc\/x\n$/,
    );
    expect(Object.keys(listTree(await mountLayer(made)))).toEqual(["etc", "etc/x"]);
    const { layer: other, stored: kept } = await layers.make(
      [entry("etc", { type: "directory", mode: 0o750 }), entry("etc/x", { content: "x".repeat(5000) })],
      "zstd",
    );
    await kept;
    expect(other).toMatchObject({ diffId: made.diffId, mediaType: "application/vnd.oci.image.layer.v1.tar+zstd" });
    expect(zstdDecompressSync(await collect(await blobs.open(other.digest))).equals(stored)).toBe(true);
    const empty = await layers.create([]);
    expect(listTree(await mountLayer(empty))).toEqual({});
  });

  test("no entry of a hostile tar is created outside, devices and foreign attributes are dropped", async () => {
    const canary = join(directory, "canary");
    await writeFile(canary, "safe");
    const xattrs = new Map([
      ["trusted.overlay.opaque", Buffer.from("y")],
      ["user.overlay.redirect", Buffer.from("/etc")],
      ["security.selinux", Buffer.from("x")],
      ["user.kept", Buffer.from("1")],
    ]);
    const made = await importTar(
      await collect(
        writeTar([
          entry("out", { type: "symlink", target: directory }),
          entry("out/canary", { content: "overwritten" }),
          entry("/absolute", { content: "inside" }),
          entry("marked", { type: "directory", xattrs }),
          entry("ids", { uid: 4_000_000_000, gid: 70_000, content: "n" }),
        ]),
      ),
    );
    const mount = await mountLayer(made);
    expect(await readFile(canary, "utf8")).toBe("safe");
    const shown = listTree(mount);
    expect(await readFile(join(mount, directory, "canary"), "utf8")).toBe("overwritten");
    expect(shown.absolute).toMatch(/^f /);
    expect(shown.marked).toMatch(/ user\.kept=31$/);
    expect(shown.marked).not.toMatch(/trusted|overlay|selinux/);
    expect(shown.ids).toMatch(/ 65534:65534 /);
    const devices = execFileSync("sh", [
      "-c",
      `cd ${directory} && mkdir dev && mknod dev/null c 1 3 && mknod dev/wh c 0 0 && tar -cf - dev`,
    ]);
    expect(Object.keys(listTree(await mountLayer(await importTar(devices))))).toEqual(["dev"]);
  });
});

describe("storing", () => {
  test("a cut, changed or different blob leaves nothing behind", async () => {
    const { layer, blob } = await layerBlob([entry("f", { content: randomBytes(300_000) })]);
    const changed = Buffer.from(blob);
    changed[200_000] = (changed[200_000] ?? 0) ^ 1;
    const cases: [Uint8Array, Layer][] = [
      [blob.subarray(0, 100_000), layer],
      [Buffer.concat([blob, Buffer.from("x")]), layer],
      [changed, layer],
      [blob, { ...layer, diffId: sha256(Buffer.from("other")) }],
    ];
    for (const [content, expected] of cases) {
      await expect(layers.import(bytes(content), expected)).rejects.toMatchObject({ code: "digest_mismatch" });
    }
    // Right digests of what is no layer.
    const cut = blob.subarray(0, 100_000);
    const damaged = { ...layer, digest: sha256(cut), sizeBytes: cut.length };
    await expect(layers.import(bytes(cut), damaged)).rejects.toMatchObject({ code: "invalid_image" });
    expect(await readdir(join(directory, "layers"))).toEqual([]);
    expect(await readdir(join(directory, "blobs", "sha256"))).toEqual([]);
    expect(await readdir(join(directory, "blobs", "tmp"))).toEqual([]);
  });

  test("an error of the source or of the entries is passed on, and leaves nothing behind", async () => {
    const { layer, blob } = await layerBlob([entry("f", { content: randomBytes(3_000_000) })]);
    const broken = (): AsyncIterable<Uint8Array> => breaking([blob.subarray(0, 1_000_000)], "line cut");
    await expect(layers.import(broken, layer)).rejects.toThrow("line cut");
    const entries = breaking([entry("f", { content: randomBytes(3_000_000) })], "disk gone");
    await expect(layers.create(entries)).rejects.toThrow("disk gone");
    await writeFile(join(directory, "not-a-directory"), "");
    const unwritable = new LayerStore(
      join(directory, "layers"),
      new FileBlobs(join(directory, "not-a-directory", "blobs")),
    );
    await expect(unwritable.import(bytes(blob), layer)).rejects.toThrow("ENOTDIR");
    expect(await readdir(join(directory, "layers"))).toEqual([]);
    expect(await readdir(join(directory, "blobs", "tmp"))).toEqual([]);
  });

  test("a full disk is said to be one, whichever of the two files meets it", async () => {
    const { layer, blob } = await layerBlob([entry("f", { content: randomBytes(3_000_000) })]);
    const small = await mountPoint();
    execFileSync("mount", ["-t", "tmpfs", "-o", "size=1m", "tmpfs", small]);
    mounted.push(small);
    const [full, roomy] = [join(small, "x"), join(directory, "x")];
    for (const [images, stored] of [
      [full, roomy],
      [roomy, full],
    ] as const) {
      const store = new LayerStore(join(images, "layers"), new FileBlobs(join(stored, "blobs")));
      await expect(store.import(bytes(blob), layer)).rejects.toMatchObject({ code: "disk_full" });
      await expect(store.create([entry("f", { content: randomBytes(3_000_000) })])).rejects.toMatchObject({
        code: "disk_full",
      });
      // An image whose blob alone found no room may stay: it is what its name says.
      const left = await readdir(join(images, "layers"));
      expect(left.map((name) => name.slice(64))).toEqual(images === full ? [] : [".erofs", ".json"]);
      expect(await readdir(join(stored, "blobs", "tmp"))).toEqual([]);
    }
  });

  test("who wants a stored layer many times at once has it made once", async () => {
    const { layer, blob } = await layerBlob([entry("f", { content: randomBytes(100_000) })]);
    expect(await layers.obtain(layer)).toBe(false);
    await blobs.put(Readable.from([blob]), { maxBytes: blob.length });
    const opened = vi.spyOn(blobs, "open");
    const wishes = Array.from({ length: 20 }, (_, n) => (n % 2 === 0 ? layers.ensure(layer) : layers.obtain(layer)));
    await Promise.all(wishes);
    expect(opened).toHaveBeenCalledTimes(1);
    expect(await layers.has(layer)).toBe(true);
  });

  test("a stored blob that is not what its layer says makes no image", async () => {
    const { layer, blob } = await layerBlob([entry("f", { content: "right" })]);
    const other = await layerBlob([entry("f", { content: "wrong" })]);
    await blobs.put(Readable.from([blob]), { maxBytes: blob.length });
    const file = join(directory, "blobs/sha256", layer.digest.slice(7));
    await writeFile(file, other.blob);
    const claimed = { ...other.layer, digest: layer.digest };
    for (const wrong of [{ ...layer, sizeBytes: other.blob.length }, claimed]) {
      await expect(layers.ensure(wrong)).rejects.toMatchObject({ code: "digest_mismatch" });
      expect(await layers.has(wrong)).toBe(false);
    }
  });

  test("nobody gets an image for claiming its diff id of another blob", async () => {
    const theirs = await importTar(await collect(writeTar([entry("secret", { content: "of another project" })])));
    const own = await importTar(await collect(writeTar([entry("f", { content: "own" })])));
    const claimed = { ...own, diffId: theirs.diffId };
    expect(await layers.has(claimed)).toBe(false);
    const all = [() => layers.ensure(claimed), () => layers.lowers([claimed]), () => layers.obtain(claimed)];
    for (const use of all) await expect(use()).rejects.toMatchObject({ code: "digest_mismatch" });
    // Whose blob it is has it as before; and so has who sends the same content, compressed in another way.
    expect(await layers.has(theirs)).toBe(true);
    const tar = gunzipSync(await collect((await blobs.open(theirs.digest)) as AsyncIterable<Uint8Array>));
    const other = zstdCompressSync(tar);
    const { digest } = await blobs.put([other], { maxBytes: other.length });
    const again = { ...theirs, digest, sizeBytes: other.length };
    expect(await layers.has(again)).toBe(false);
    expect(await layers.ensure(again)).toBe(layers.path(theirs.diffId));
    expect([await layers.has(again), await layers.has(theirs)]).toEqual([true, true]);
  });

  test("an image that was cut short is noticed and made again", async () => {
    const { layer, blob } = await layerBlob([entry("f", { content: "content" })]);
    await layers.import(bytes(blob), layer);
    await truncate(layers.path(layer.diffId), 4096);
    expect(await layers.has(layer)).toBe(false);
    await layers.ensure(layer);
    expect(Object.keys(listTree(await mountLayer(layer)))).toEqual(["f"]);
  });

  test("lists and removes, also what was left unfinished", async () => {
    const made = await layers.create([entry("f", { content: "1" })]);
    await writeFile(join(directory, "layers", "left.tmp"), "");
    await layers.removeUnfinished();
    const list = async (): Promise<string[]> => gather(layers.list());
    expect(await list()).toEqual([made.diffId]);
    expect(await layers.removeUnused(made.diffId, 60_000, () => undefined)).toBe(false);
    expect(await list()).toEqual([made.diffId]);
    expect(await layers.removeUnused(made.diffId, 0, () => undefined)).toBe(true);
    expect(await list()).toEqual([]);
    expect(await readdir(join(directory, "layers"))).toEqual([]);
  });

  /** The host's layers as its next worker finds them, whose blobs are stored when `ready` resolves. */
  function storedLate(ready: Promise<unknown>): LayerStore {
    const late = Object.assign(Object.create(blobs) as FileBlobs, {
      open: (digest: string) => blobs.open(digest),
      put: async (...[source, expect]: Parameters<FileBlobs["put"]>) => {
        const confirm = () => ready.then(() => expect.confirm?.());
        return blobs.put(source, { ...expect, confirm });
      },
    });
    return new LayerStore(join(directory, "layers"), late);
  }

  test("an image that is made again is not old, though its blob is not stored yet", async () => {
    const entries = [entry("f", { content: "1" })];
    const { diffId } = await layers.create(entries);
    const path = layers.path(diffId);
    for (const file of [path, path.replace(/erofs$/, "json")]) await utimes(file, 1, 1);
    const gate = Promise.withResolvers<undefined>();
    const next = storedLate(gate.promise);
    const { layer, stored } = await next.make(entries);
    expect(await next.removeUnused(diffId, 60_000, () => undefined)).toBe(false);
    expect(await next.lowers([layer])).toEqual([path]);
    gate.resolve(undefined);
    await stored;
  });

  test("an image of another size, by an earlier version, is used when its layer is made again", async () => {
    const entries = [entry("f", { content: "1" })];
    const { layer, blob } = await layerBlob(entries);
    await layers.import(bytes(blob), layer);
    const path = layers.path(layer.diffId);
    const recorded = path.replace(/erofs$/, "json");
    const record = JSON.parse(await readFile(recorded, "utf8")) as { imageBytes: number };
    record.imageBytes += 4096;
    await truncate(path, record.imageBytes);
    await writeFile(recorded, JSON.stringify(record));
    // Another one could not be made: there is no blob yet.
    await rm(join(directory, "blobs", "sha256", layer.digest.slice("sha256:".length)));
    const gate = Promise.withResolvers<undefined>();
    const next = storedLate(gate.promise);
    const { layer: made, stored } = await next.make(entries);
    expect(made.diffId).toBe(layer.diffId);
    expect(await next.lowers([made])).toEqual([path]);
    gate.resolve(undefined);
    await stored;
    expect(await next.lowers([made])).toEqual([path]);
    expect(await new LayerStore(join(directory, "layers"), blobs).has(layer)).toBe(true);
  });
});

describe("overlays", () => {
  test("changes made through an overlay come back as a layer that shows the same", async () => {
    const base = await layers.create([
      entry("keep", { content: "k" }),
      entry("gone", { content: "g" }),
      entry("old", { type: "directory" }),
      entry("old/inside", { content: "i" }),
      entry("replaced", { type: "directory" }),
      entry("replaced/lower", { content: "l" }),
      entry("changed", { content: "before" }),
    ]);
    const lower = await mountLayer(base);
    const upper = await mountPoint();
    const merged = await mountOverlay([lower], upper);
    execFileSync("sh", [
      "-ec",
      `
      cd "$1"; rm gone; rm -r old; rm -r replaced; mkdir replaced; echo new > replaced/upper
      echo after > changed; ln changed linked; ln -s keep link; mkfifo pipe
      chown 12:34 changed; touch -d @5.5 keep; mkdir -m 1777 tmp; printf x > "$(printf 'b\\377')"
      cp /bin/busybox capable; setcap cap_net_bind_service+ep capable`,
      "sh",
      merged,
    ]);
    execFileSync("python3", [
      "-c",
      "import socket,sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])",
      join(merged, "socket"),
    ]);
    const seen = listTree(merged);
    delete seen.socket;
    const change = await layers.create(readUpper(upper, 0));
    const again = await layers.create(readUpper(upper, 0));
    expect(again).toEqual(change);
    const target = await mountOverlay([lower, await mountLayer(change)], await mountPoint());
    expect(listTree(target)).toEqual(seen);
  });

  test("ids and file capabilities are shifted back out of the container's range", async () => {
    const idBase = 1_048_576;
    const upper = await mountPoint();
    for (const [name, id] of [
      ["root", idBase],
      ["user", idBase + 1000],
      ["foreign", 5],
    ] as const) {
      writeFileSync(join(upper, name), name);
      chownSync(join(upper, name), id, id);
    }
    execFileSync("setcap", ["-n", String(idBase), "cap_net_raw+ep", join(upper, "root")]);
    const shown = listTree(await mountLayer(await layers.create(readUpper(upper, idBase))));
    expect(shown.root).toMatch(/ 0:0 .* security\.capability=0100000200200000/);
    expect(shown.user).toMatch(/ 1000:1000 /);
    expect(shown.foreign).toMatch(/ 65534:65534 /);
  });

  test("a directory of very many names comes whole and in order, and lets other work go on", async () => {
    const upper = join(directory, "upper");
    const names = Array.from({ length: 15_000 }, (_, n) => `a-name-that-is-not-short-${String(n)}`);
    mkdirSync(join(upper, "many"), { recursive: true });
    for (const name of names) writeFileSync(join(upper, "many", name), "");
    writeFileSync(join(upper, "not-utf8-\u00ff"), "");
    let turns = 0;
    const timer = setInterval(() => turns++, 1);
    const found = (await gather(readUpper(upper, 0))).map(({ path }) => path);
    clearInterval(timer);
    expect(found).toEqual(["many", ...names.map((name) => `many/${name}`).sort(), "not-utf8-\xc3\xbf"]);
    expect(turns).toBeGreaterThan(5);
  });

  test("links out of the directory are kept as links and never followed", async () => {
    const upper = await mountPoint();
    symlinkSync("/etc", join(upper, "etc"));
    symlinkSync("/proc/self/root", join(upper, "root"));
    const entries = await gather(readUpper(upper, 0));
    expect(entries.map(({ path, type, target }) => [path, type, target])).toEqual([
      ["etc", "symlink", "/etc"],
      ["root", "symlink", "/proc/self/root"],
    ]);
  });

  const showStack = async (stack: Layer[]): Promise<TreeListing> => {
    const mounts = [];
    for (const image of await layers.lowers(stack)) mounts.push(await mountImage(image));
    return listTree(await mountOverlay(mounts, await mountPoint()), { skipTimes: true });
  };

  test("a directory that a layer uses without describing it keeps the attributes that lower layers gave it", async () => {
    const xattrs = new Map([["user.note", Buffer.from("n")]]);
    const base = await layers.create([
      entry("tmp", { type: "directory", mode: 0o1777 }),
      entry("home", { type: "directory", mode: 0o711 }),
      entry("home/ada", { type: "directory", mode: 0o700, uid: 1000, gid: 1000, xattrs }),
      entry("plain", { type: "directory" }),
      entry("hidden", { type: "directory", mode: 0o700 }),
      entry("file", { content: "f" }),
    ]);
    const upper = await layers.create([
      entry("tmp/x", { content: "x" }),
      entry("home/ada/y", { content: "y" }),
      entry("plain/z", { content: "z" }),
      entry(".wh.hidden"),
      entry("hidden/new", { content: "n" }),
      entry("file/x", { content: "now a directory" }),
    ]);
    const shown = await showStack([base, upper]);
    expect(shown.tmp).toMatch(/^d 1777 0:0 /);
    expect(shown.home).toMatch(/^d 711 0:0 /);
    expect(shown["home/ada"]).toMatch(/^d 700 1000:1000 .*user\.note=6e/);
    expect(shown["home/ada/y"]).toMatch(/^f /);
    for (const path of ["plain", "hidden", "file"]) expect(shown[path]).toMatch(/^d 755 0:0 /);
    // Once a layer describes it, that counts; a layer on top that only uses it changes nothing.
    const described = await layers.create([entry("tmp", { type: "directory", mode: 0o1770 })]);
    expect((await showStack([base, upper, described])).tmp).toMatch(/^d 1770 /);
    const more = await layers.create([entry("tmp/more", { content: "m" })]);
    expect((await showStack([base, described, upper, more])).tmp).toMatch(/^d 1770 /);
    // The probe sees the loss when the images are mounted as they are.
    const bare = await mountOverlay([await mountLayer(base), await mountLayer(upper)], await mountPoint());
    expect(listTree(bare).tmp).toMatch(/^d 755 /);
    expect(await layers.lowers([base])).toEqual([layers.path(base.diffId)]);
  });

  test("a layer whose root is opaque hides all layers below", async () => {
    const base = await layers.create([entry("old", { content: "o" })]);
    const upper = await layers.create([entry(".wh..wh..opq"), entry("new", { content: "n" })]);
    expect(await layers.lowers([base, upper])).toEqual([layers.path(upper.diffId)]);
    // Known again to a store that did not make it.
    const again = new LayerStore(join(directory, "layers"), blobs);
    expect(await again.lowers([base, upper, base])).toEqual([upper, base].map((one) => again.path(one.diffId)));
  });

  test("a whiteout and an opaque directory hide what is below", async () => {
    const lower = await layers.create([
      entry("a/one", { content: "1" }),
      entry("b", { content: "b" }),
      entry("c", { content: "c" }),
    ]);
    const upper = await layers.create([
      entry("a/.wh..wh..opq"),
      entry("a/two", { content: "2" }),
      entry(".wh.b"),
      entry(".wh.c"),
      entry("c", { content: "new" }),
    ]);
    const merged = await mountOverlay([await mountLayer(lower), await mountLayer(upper)], await mountPoint());
    expect(Object.keys(listTree(merged)).sort()).toEqual(["a", "a/two", "c"]);
    expect(await readFile(join(merged, "c"), "utf8")).toBe("new");
  });
});

test("a tar that is read and written again is the same to GNU tar", async () => {
  const source = join(directory, "source");
  await mkdir(source);
  makeTree(source);
  const tar = execFileSync("tar", ["-C", source, "--format=gnu", "-cf", "-", "."], { maxBuffer: 1 << 28 });
  const again = await collect(writeTar(readTar(Readable.from([tar]))));
  const list = (input: Buffer): string =>
    execFileSync("tar", ["--numeric-owner", "-tvf", "-"], { input, encoding: "latin1", maxBuffer: 1 << 28 });
  expect(list(again)).toBe(list(tar));
});
