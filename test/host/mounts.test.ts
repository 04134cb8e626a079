import { execFileSync } from "node:child_process";
import { closeSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { FileBlobs } from "../../src/image/file-blobs.ts";
import { LayerStore } from "../../src/image/layers.ts";
import { attachLoop, listLoops } from "../../src/isolation/apply/loop.ts";
import { attachMount, newMount, unmount } from "../../src/isolation/apply/mount-api.ts";
import { mountsBelow } from "../../src/isolation/apply/mount-table.ts";
import { Mounts } from "../../src/isolation/apply/mounts.ts";
import { closeNamespaces, createNamespaces, type Namespaces } from "../../src/isolation/apply/namespaces.ts";
import { entry } from "../support/image.ts";
import { Owned } from "../support/ownership.ts";

const idBase = 900_000_000;
let owned: Owned;
let directory: string;
let mounts: Mounts;
let store: LayerStore;
let namespaces: Namespaces;
let layers: string[];

beforeEach(async () => {
  owned = Owned.directory("berth-mounts-");
  ({ directory } = owned.footprint);
  store = new LayerStore(join(directory, "store"), new FileBlobs(join(directory, "blobs")));
  mounts = new Mounts(join(directory, "layers"));
  namespaces = createNamespaces(idBase);
  const lower = await store.create([
    entry("bin", { type: "directory" }),
    entry("bin/tool", { content: "old", mode: 0o4755, uid: 5, gid: 6 }),
    entry("gone", { content: "x" }),
  ]);
  const upper = await store.create([
    entry("bin/tool", { content: "new", uid: 1000 }),
    entry(".wh.gone", { content: "" }),
    entry("node", { content: "top" }),
  ]);
  layers = [lower, upper].map((layer) => store.path(layer.diffId));
  for (const name of ["upper", "work", "root", "view"]) mkdirSync(join(directory, name));
});
afterEach(async () => {
  closeNamespaces(namespaces);
  for (const { path } of mountsBelow(directory).toReversed()) unmount(path);
  await owned.remove();
});

const at = (...names: string[]): string => join(directory, ...names);
const rootfs = (more: object = {}): Parameters<Mounts["mountRootfs"]>[0] => ({
  layers,
  upper: at("upper"),
  work: at("work"),
  target: at("root"),
  userNamespace: namespaces.user,
  volatile: true,
  ...more,
});

// The second way is what kernels before 6.13 need.
describe.each([true, false])("a root filesystem, layers given by descriptor: %s", (layersByDescriptor) => {
  beforeEach(() => {
    mounts = new Mounts(at("layers"), { layersByDescriptor });
  });

  test("shows the layers one over the other, with the container's ids", async () => {
    await mounts.mountRootfs(rootfs());
    expect(readFileSync(at("root/bin/tool"), "utf8")).toBe("new");
    expect(statSync(at("root/bin/tool")).uid).toBe(idBase + 1000);
    expect(readdirSync(at("root")).sort()).toEqual(["bin", "node"]);
    writeFileSync(at("root/bin/tool"), "mine");
    expect(readFileSync(at("upper/bin/tool"), "utf8")).toBe("mine");
    expect(statSync(at("upper/bin/tool")).uid).toBe(idBase + 1000);
    await mounts.unmountRootfs(at("root"));
    await mounts.unmountRootfs(at("root"));
    expect(mountsBelow(directory).map(({ type }) => type)).toEqual(["erofs", "erofs"]);
  });

  test("can be mounted again over the same upper directory, volatile or not", async () => {
    for (const volatile of [true, true, false]) {
      await mounts.mountRootfs(rootfs({ volatile }));
      writeFileSync(at("root", `left-${readdirSync(at("root")).length}`), "");
      await mounts.unmountRootfs(at("root"));
    }
    expect(readdirSync(at("upper")).filter((name) => name.startsWith("left-"))).toHaveLength(3);
  });

  test("a view has the image's owners and can't be written", async () => {
    await mounts.mountView([layers[0] ?? ""], at("view"));
    expect(statSync(at("view/bin/tool"))).toMatchObject({ uid: 5, gid: 6, mode: 0o104755 });
    expect(() => writeFileSync(at("view/x"), "")).toThrow(/EROFS/);
    await mounts.unmountRootfs(at("view"));
  });

  test("a hundred layers", async () => {
    const many = Array.from({ length: 98 }, (_, n) => at(`plain-${n}`));
    for (const [n, path] of many.entries()) {
      mkdirSync(path);
      writeFileSync(join(path, `file-${n}`), "");
    }
    await mounts.mountRootfs(rootfs({ layers: [...layers, ...many] }));
    expect(readdirSync(at("root"))).toHaveLength(2 + 98);
    await mounts.unmountRootfs(at("root"));
    expect(mountsBelow(directory)).toHaveLength(2);
  });
});

test("device nodes of an upper directory are inert", async () => {
  execFileSync("mknod", [at("upper/null"), "c", "1", "3"]);
  await mounts.mountRootfs(rootfs());
  expect(() => readFileSync(at("root/null"))).toThrow(/EACCES/);
  expect(readFileSync(at("upper/null"), "utf8")).toBe("");
});

test("a layer's mount can go while a root filesystem is made of it, and so can its file", async () => {
  await mounts.mountRootfs(rootfs());
  for (const layer of layers) {
    mounts.unmountLayer(layer);
    mounts.unmountLayer(layer);
    rmSync(layer);
  }
  expect(mountsBelow(directory).map(({ type }) => type)).toEqual(["overlay"]);
  expect(readFileSync(at("root/bin/tool"), "utf8")).toBe("new");
});

test("the next worker takes over the layers that are mounted", async () => {
  await mounts.mountRootfs(rootfs());
  const next = new Mounts(at("layers"));
  await next.mountView(layers, at("view"));
  expect(mountsBelow(at("layers"))).toHaveLength(2);
  next.unmountLayers();
  expect(mountsBelow(at("layers"))).toHaveLength(0);
});

test("one mount of a layer, however many ask at once", async () => {
  const [layer = ""] = layers;
  const places = await Promise.all(Array.from({ length: 5 }, () => mounts.mountLayer(layer)));
  expect(new Set(places).size).toBe(1);
  expect(mountsBelow(at("layers"))).toHaveLength(1);
});

test("a damaged image is an error that can be tried again", async () => {
  const bad = at("bad.erofs");
  writeFileSync(bad, Buffer.alloc(8192));
  await expect(mounts.mountLayer(bad)).rejects.toThrow(/erofs/);
  writeFileSync(bad, readFileSync(layers[0] ?? ""));
  expect(existsSync(join(await mounts.mountLayer(bad), "bin/tool"))).toBe(true);
});

test("an image on a loop device, which frees itself", async () => {
  const [layer = ""] = layers;
  const loop = await attachLoop(layer, { readOnly: true, direct: false });
  const mount = newMount(
    "erofs",
    [
      ["ro", true],
      ["source", loop.path],
    ],
    1,
  );
  attachMount(mount, at("view"));
  closeSync(mount);
  closeSync(loop.fd);
  expect(readFileSync(at("view/bin/tool"), "utf8")).toBe("old");
  expect(listLoops()).toContainEqual({ device: loop.path, file: layer });
  unmount(at("view"));
  await expect.poll(listLoops, { timeout: 20_000 }).not.toContainEqual({ device: loop.path, file: layer });
});
