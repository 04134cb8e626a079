import { describe, expect, test } from "vitest";
import type { LayerEntry } from "../../src/image/layer-entry.ts";
import { defaultLimits, type LayerLimits } from "../../src/image/layer-limits.ts";
import type { LayerNode } from "../../src/image/layer-node.ts";
import { LayerTree } from "../../src/image/layer-tree.ts";
import { keptXattrs, plainCapability } from "../../src/image/layer-xattrs.ts";
import { entry } from "../support/image.ts";

function build(entries: LayerEntry[], limits: Partial<LayerLimits> = {}): LayerTree {
  const tree = new LayerTree({ ...defaultLimits, ...limits });
  for (const one of entries) tree.add(one);
  return tree;
}

/** The tree as text: `name`, `name/` for directories, `!` opaque, `?` implicit, `-name` whiteout, `name>target`. */
function show(node: LayerNode): Record<string, unknown> | string {
  if (node.children === null) return node.type === "symlink" ? `>${node.target}` : node.type;
  return Object.fromEntries(
    [...node.children].map(([name, child]) => [
      child.type === "whiteout" ? `-${name}` : name + (child.opaque ? "!" : "") + (child.implicit ? "?" : ""),
      show(child),
    ]),
  );
}

const dir = (path: string, more = {}): LayerEntry => entry(path, { type: "directory", ...more });
const link = (path: string, target: string): LayerEntry => entry(path, { type: "hardlink", target });
const symlink = (path: string, target: string): LayerEntry => entry(path, { type: "symlink", target });

describe("placing", () => {
  test("every spelling of a path is one path, and missing parents are made", () => {
    const tree = build([entry("/a/./b//c"), entry("./a/b/d"), dir("a/", { mode: 0o700 }), dir("./", { mode: 0o711 })]);
    expect(show(tree.root)).toEqual({ a: { "b?": { c: "file", d: "file" } } });
    expect(tree.root.children?.get("a")).toMatchObject({ mode: 0o700, implicit: false });
    expect(tree.root).toMatchObject({ mode: 0o711, implicit: false });
  });

  test("the last of several entries of one name wins; directories keep what is in them", () => {
    const tree = build([
      entry("x"),
      symlink("x", "y"),
      dir("d"),
      entry("d/f"),
      dir("d", { uid: 5 }),
      dir("e"),
      entry("e/f"),
      entry("e"),
    ]);
    expect(show(tree.root)).toEqual({ x: ">y", d: { f: "file" }, e: "file" });
    expect(tree.root.children?.get("d")?.uid).toBe(5);
  });

  test("symlinks on the way are followed inside the layer only; the last component never is", () => {
    const tree = build([
      symlink("lib", "usr/lib"),
      entry("lib/x"),
      symlink("up", "../../../../etc"),
      entry("up/passwd"),
      symlink("abs", "/usr"),
      entry("abs/y"),
      symlink("f", "lib/x"),
      entry("f"),
    ]);
    expect(show(tree.root)).toEqual({
      lib: ">usr/lib",
      "usr?": { "lib?": { x: "file" }, y: "file" },
      up: ">../../../../etc",
      "etc?": { passwd: "file" },
      abs: ">/usr",
      f: "file",
    });
  });

  test("hard links are names of one node; to itself it is nothing", () => {
    const tree = build([entry("a"), link("b", "./a"), link("a", "a"), symlink("d", "."), link("c", "d/b")]);
    const node = tree.root.children?.get("a");
    expect(node?.links).toBe(3);
    expect(tree.root.children?.get("c")).toBe(node);
    tree.add(entry("b"));
    expect(node?.links).toBe(2);
  });

  test("ids that a container does not have become nobody's", () => {
    const tree = build([entry("a", { uid: 65_535, gid: 65_536 }), entry("b", { uid: -1, gid: 2 ** 40 })]);
    expect(tree.root.children?.get("a")).toMatchObject({ uid: 65_535, gid: 65_534 });
    expect(tree.root.children?.get("b")).toMatchObject({ uid: 65_534, gid: 65_534 });
  });

  test("devices are dropped, whatever they are named", () => {
    expect(show(build([entry("dev/null", { type: "device" }), entry(".wh.x", { type: "device" })]).root)).toEqual({});
  });

  test.each<[string, LayerEntry[]]>([
    ["..", [entry("../x")]],
    ["a .. further in", [entry("a/../../x")]],
    ["a NUL", [entry("a\0b")]],
    ["a character that is no byte", [entry("\u0142")]],
    ["a component of 256 bytes", [entry("n".repeat(256))]],
    ["a file as a parent", [entry("a"), entry("a/b")]],
    ["a hard link to nothing", [link("a", "b")]],
    ["a hard link out", [link("a", "../etc/passwd")]],
    ["a hard link through a symlink out", [symlink("s", "/etc"), link("a", "s/passwd")]],
    ["a hard link to a directory", [dir("d"), link("a", "d")]],
    ["a hard link to a whiteout", [entry(".wh.w"), link("a", "w")]],
    ["a symlink to nowhere", [symlink("a", "")]],
    ["a symlink of 4096 bytes", [symlink("a", "x".repeat(4096))]],
    ["a loop of symlinks", [symlink("a", "b"), symlink("b", "a"), entry("a/x")]],
    ["an entry within a whiteout", [entry(".wh.a/b")]],
    ["a whiteout of no name", [entry("a/.wh.")]],
    ["a whiteout of ..", [entry(".wh...")]],
  ])("refuses %s", (_, entries) => {
    expect(() => build(entries)).toThrow(expect.objectContaining({ code: "invalid_image" }));
  });
});

describe("whiteouts", () => {
  test("hide what is below, and never what the layer itself has, in either order", () => {
    expect(show(build([entry(".wh.a"), entry("d/.wh.b"), entry(".wh..wh.plnk")]).root)).toEqual({
      "-a": "whiteout",
      "d?": { "-b": "whiteout" },
    });
    expect(show(build([entry(".wh.f"), entry("f")]).root)).toEqual({ f: "file" });
    expect(show(build([entry("f"), entry(".wh.f")]).root)).toEqual({ f: "file" });
  });

  test("of a directory that comes anew: it is opaque", () => {
    const expected = { "d!": { x: "file" } };
    expect(show(build([entry(".wh.d"), dir("d"), entry("d/x")]).root)).toEqual(expected);
    expect(show(build([dir("d"), entry("d/x"), entry(".wh.d")]).root)).toEqual(expected);
    expect(show(build([entry(".wh.d"), entry("d/x")]).root)).toEqual({ "d!?": { x: "file" } });
    expect(show(build([entry("d/x"), entry("d/.wh..wh..opq")]).root)).toEqual({ "d!?": { x: "file" } });
  });
});

describe("limits", () => {
  test.each<[string, LayerEntry[], Partial<LayerLimits>]>([
    ["entries", [entry("a"), entry("a"), entry("a")], { entries: 2 }],
    ["made parents", [entry("a/b/c/d")], { entries: 3 }],
    ["depth", [entry("a/b/c")], { depth: 2 }],
    ["depth through symlinks", [symlink("s", "a/b/c"), entry("s/d")], { depth: 3 }],
    ["names", [entry("a".repeat(200)), entry("b".repeat(200))], { metadataBytes: 300 }],
    [
      "symlinks that are followed",
      [symlink("s", "././././././."), ...Array.from({ length: 9 }, () => entry("s/s/s/x"))],
      { metadataBytes: 200 },
    ],
    ["xattrs", [entry("a", { xattrs: new Map([["user.x", Buffer.alloc(100)]]) })], { xattrBytes: 100 }],
  ])("%s", (_, entries, limits) => {
    expect(() => build(entries, limits)).toThrow(expect.objectContaining({ code: "layer_too_large" }));
    expect(() => build(entries)).not.toThrow();
  });
});

describe("xattrs", () => {
  test("only a user's own and file capabilities are kept", () => {
    const capability = Buffer.concat([Buffer.from([0, 0, 0, 2]), Buffer.alloc(16)]);
    const all = new Map<string, Uint8Array>([
      ["user.a", Buffer.from("1")],
      ["user.", Buffer.from("1")],
      ["user.overlay.opaque", Buffer.from("y")],
      ["user.overlay", Buffer.from("y")],
      ["trusted.overlay.opaque", Buffer.from("y")],
      ["security.capability", capability],
      ["security.ima", Buffer.from("1")],
      ["system.posix_acl_access", Buffer.from("1")],
    ]);
    expect([...keptXattrs(all).keys()]).toEqual(["user.a", "security.capability"]);
  });

  test("a capability of a namespace becomes a plain one only for its own root", () => {
    const own = Buffer.concat([Buffer.from([1, 0, 0, 3]), Buffer.alloc(16, 7), Buffer.from([0, 0, 16, 0])]);
    expect(plainCapability(own, 1_048_576)).toEqual(Buffer.concat([Buffer.from([1, 0, 0, 2]), Buffer.alloc(16, 7)]));
    expect(plainCapability(own, 0)).toBeNull();
    expect(plainCapability(Buffer.from([0, 0, 0, 2]), 0)).toBeNull();
    expect(plainCapability(Buffer.alloc(0), 0)).toBeNull();
  });
});
