import { mkdir, mkdtemp, rmdir } from "node:fs/promises";
import { join } from "node:path";
import fc from "fast-check";
import { afterEach, beforeEach, expect, test } from "vitest";
import type { FileTree } from "../../src/engine/build/file-entry.ts";
import { OpenImages } from "../../src/engine/build/image-tree.ts";
import { FileBlobs } from "../../src/image/file-blobs.ts";
import type { LayerEntry } from "../../src/image/layer-entry.ts";
import { LayerStore } from "../../src/image/layers.ts";
import { Mounts } from "../../src/isolation/apply/mounts.ts";
import { entry } from "../support/image.ts";
import { Owned } from "../support/ownership.ts";
import { RootView } from "../support/root-view.ts";

// What a build reads of images by itself is what the kernel shows of them.

let owned: Owned;
let directory: string;
let layers: LayerStore;
let mounts: Mounts;
let images: OpenImages;

beforeEach(() => {
  owned = Owned.directory("berth-image-tree-");
  ({ directory } = owned.footprint);
  layers = new LayerStore(join(directory, "layers"), new FileBlobs(join(directory, "blobs")));
  mounts = new Mounts(join(directory, "mounts"));
  images = new OpenImages();
});
afterEach(async () => {
  await images.close();
  mounts.unmountLayers();
  await owned.remove();
});

/** All that can be seen of a tree, by path. */
async function seen(tree: FileTree, path = "/", found: Record<string, unknown> = {}): Promise<Record<string, unknown>> {
  const there = await tree.get(path);
  if (there === null) return found;
  const { type, mode, uid, gid, mtime, size, target, xattrs } = there;
  const parts: Uint8Array[] = [];
  if (type === "file") for await (const part of tree.read(path, there)) parts.push(part);
  const content = Buffer.concat(parts).toString("latin1");
  const named = [...xattrs].map(([name, value]) => [name, Buffer.from(value).toString("hex")]).sort();
  found[path] = { type, mode, uid, gid, mtime, size, target, named, content };
  if (type !== "directory") return found;
  for (const name of await tree.list(path)) await seen(tree, path === "/" ? `/${name}` : `${path}/${name}`, found);
  return found;
}

/** The stack as the build and as the kernel see it. */
async function both(stack: readonly LayerEntry[][]): Promise<{ ours: unknown; kernel: unknown }> {
  const made = [];
  for (const entries of stack) made.push(await layers.create(entries));
  const paths = await layers.lowers(made);
  const target = await mkdtemp(join(directory, "view-"));
  await mkdir(target, { recursive: true });
  await mounts.mountView(paths, target);
  try {
    return { ours: await seen(await images.tree(paths)), kernel: await seen(new RootView(target)) };
  } finally {
    await mounts.unmountRootfs(target);
    await rmdir(target);
  }
}

test("layers of every kind of file, small and large, with names and attributes that are hard to keep", async () => {
  const many = Array.from({ length: 1500 }, (_, i) => entry(`many/${"n".repeat(i % 200)}${String(i)}`, { uid: i }));
  const base = [
    entry("etc/", { type: "directory", mode: 0o700, uid: 5, gid: 6 }),
    entry("etc/empty"),
    entry("etc/large", { content: "0123456789".repeat(300_001) }),
    entry("etc/just", { content: "j".repeat(64 << 10) }),
    entry("etc/not-utf8-\xff\xfe", { content: "x", mode: 0o6755, uid: 70_000, gid: 65_535 }),
    entry("etc/linked", { type: "hardlink", target: "etc/large" }),
    entry("link", { type: "symlink", target: "../etc/./x" }),
    entry("long", { type: "symlink", target: "y".repeat(4000) }),
    entry("pipe", { type: "fifo" }),
    entry("before", { content: "b", mtime: { seconds: -2, nanoseconds: 250_000_001 } }),
    // Behind their inodes, or in blocks: by their size, or since nothing fits behind.
    ...[1023, 1024, 1025, 4096].map((size) => entry(`etc/${String(size)}`, { content: Buffer.alloc(size, size) })),
    entry("etc/apart", { content: "a".repeat(1000), xattrs: new Map([["user.a", Buffer.alloc(3500, 2)]]) }),
    entry("marked", { content: "m", xattrs: new Map([["user.a", Buffer.alloc(3000, 1)]]) }),
    ...many,
  ];
  const above = [
    entry("etc/.wh.empty"),
    entry("etc/new", { content: "n" }),
    entry("many/.wh..wh..opq"),
    entry("many/1"),
  ];
  const { ours, kernel } = await both([base, above, [entry("link", { content: "no link now" })]]);
  expect(ours).toEqual(kernel);
  expect(Object.keys(ours as object)).toContain("/etc/large");
  expect(Object.keys(ours as object)).not.toContain("/etc/empty");
  expect(Object.keys(ours as object).filter((path) => path.startsWith("/many/"))).toEqual(["/many/1"]);
});

test("any stack of layers, with whiteouts, opaque directories, and files where directories were", {
  timeout: 30_000,
}, async () => {
  const name = fc.constantFrom("a", "b", "c");
  const path = fc.array(name, { minLength: 1, maxLength: 3 }).map((parts) => parts.join("/"));
  const one = fc.record({
    path,
    kind: fc.constantFrom("file", "directory", "symlink", "whiteout", "opaque"),
    mode: fc.constantFrom(0o755, 0o700, 0o1777),
    content: fc.string({ maxLength: 5 }),
  });
  const layer = fc.uniqueArray(one, { maxLength: 8, selector: (made) => made.path }).map((all) =>
    // No name below what is no directory: a tar that says both is refused.
    all.filter(({ path: at }) =>
      all.every((other) => !at.startsWith(`${other.path}/`) || /^(dir|opa)/.test(other.kind)),
    ),
  );
  const entriesOf = (all: { path: string; kind: string; mode: number; content: string }[]): LayerEntry[] =>
    all.map(({ path: at, kind, mode, content }) => {
      const slash = at.lastIndexOf("/") + 1;
      if (kind === "whiteout") return entry(`${at.slice(0, slash)}.wh.${at.slice(slash)}`);
      if (kind === "opaque") return entry(`${at}/.wh..wh..opq`);
      if (kind === "symlink") return entry(at, { type: "symlink", target: content === "" ? "x" : content });
      return kind === "directory" ? entry(at, { type: "directory", mode }) : entry(at, { content, mode });
    });
  await fc.assert(
    fc.asyncProperty(fc.array(layer, { minLength: 1, maxLength: 4 }), async (stack) => {
      const { ours, kernel } = await both(stack.map(entriesOf));
      expect(ours).toEqual(kernel);
    }),
    { numRuns: 150 },
  );
});

test("what is still read when a build ends can be read to its end, and is closed then", async () => {
  const content = "0123456789".repeat(200_000);
  const paths = await layers.lowers([await layers.create([entry("large", { content })])]);
  const begun = Promise.withResolvers<FileTree>();
  const ended = Promise.withResolvers<undefined>();
  const read = async (tree: FileTree): Promise<string> => {
    const found = await tree.get("/large");
    const parts: Uint8Array[] = [];
    if (found !== null) for await (const part of tree.read("/large", found)) parts.push(part);
    return Buffer.concat(parts).toString();
  };
  const reading = images.with(paths, async (tree) => {
    begun.resolve(tree);
    await ended.promise;
    return read(tree);
  });
  const tree = await begun.promise;
  await images.close();
  ended.resolve(undefined);
  expect(await reading).toBe(content);
  await expect(read(tree)).rejects.toThrow();
});

test("directories with many names and many directories are seen whole, whatever is kept of them", async () => {
  const names = (directory: string, count: number) =>
    Array.from({ length: count }, (_, n) => entry(`${directory}/${String(n)}`));
  const large = [1, 2, 3, 4, 5, 6].flatMap((n) => names(`large${String(n)}`, 12_000));
  const many = Array.from({ length: 100 }, (_, n) => names(`many/${String(n)}/a/b`, 3)).flat();
  const paths = await layers.lowers([await layers.create(large), await layers.create(many)]);
  const found = await seen(await images.tree(paths));
  // The root, 6 directories of 12,000 files, and 100 of 3 in 2 more, in one.
  expect(Object.keys(found)).toHaveLength(1 + 6 * 12_001 + 1 + 100 * (3 + 3));
});
