import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync, zstdCompressSync } from "node:zlib";
import { afterAll, expect, test } from "vitest";
import { parseDockerfile } from "../../src/build/dockerfile.ts";
import { IgnoreRules } from "../../src/build/ignore.ts";
import { planBuild } from "../../src/build/plan.ts";
import type { CopyStep } from "../../src/build/step.ts";
import { readContext } from "../../src/engine/build/context.ts";
import type { ContextTree } from "../../src/engine/build/context-tree.ts";
import { copyLayer } from "../../src/engine/build/copy-layer.ts";
import { originSource } from "../../src/engine/build/copy-source.ts";
import { emptyRoot } from "../../src/engine/build/empty-root.ts";
import type { FileTree } from "../../src/engine/build/file-entry.ts";
import type { LayerEntry } from "../../src/image/layer-entry.ts";
import { writeTar } from "../../src/image/tar-write.ts";
import { collect, entry } from "../support/image.ts";
import { planOptions } from "../support/plan-options.ts";

const directory = mkdtempSync(join(tmpdir(), "berth-copy-test-"));
const opened: { close: () => Promise<void> }[] = [];
afterAll(async () => {
  for (const one of opened) await one.close();
  rmSync(directory, { recursive: true, force: true });
});

async function tree(entries: LayerEntry[], pack: (tar: Buffer) => Uint8Array = (tar) => tar): Promise<ContextTree> {
  const tar = pack(await collect(writeTar(entries)));
  const context = await readContext(
    (async function* () {
      yield await Promise.resolve(tar);
    })(),
    join(directory, crypto.randomUUID()),
  );
  opened.push(context);
  return context.tree;
}

/** Text of a context: `path` or `path=content`; `path/` is a directory, `path->target` a link. */
const files = (...texts: string[]): LayerEntry[] =>
  texts.map((text) => {
    const link = text.split("->");
    if (link[1] !== undefined) return entry(link[0] ?? "", { type: "symlink", mode: 0o777, target: link[1] });
    if (text.endsWith("/")) return entry(text, { type: "directory" });
    const [path = "", content = path] = text.split("=");
    return entry(path, { content });
  });

function step(line: string, ...before: string[]): CopyStep {
  const options = planOptions();
  const plan = planBuild(parseDockerfile(["FROM scratch", ...before, line].join("\n")), options, new Map());
  const last = plan.stages.at(-1)?.steps.at(-1);
  if (last?.kind !== "copy") throw new Error("not a COPY");
  return last;
}

/** The layer's entries, as `path`, `path/`, `path->target` or `path=content` when it is not the path's own name. */
async function copied(line: string, origin: FileTree, below: FileTree = emptyRoot): Promise<string[]> {
  const shown: string[] = [];
  const one = step(line);
  for await (const made of copyLayer(one, [originSource(one, origin)], below)) {
    if (made.type === "symlink") shown.push(`${made.path}->${made.target}`);
    else if (made.type === "directory") shown.push(made.path);
    else {
      const parts: Uint8Array[] = [];
      for await (const part of made.content) parts.push(part);
      shown.push(`${made.path}=${Buffer.concat(parts).toString()}`);
    }
  }
  return shown;
}

const context = await tree(
  files(
    "a=A",
    "b=B",
    "dir/",
    "dir/x=X",
    "dir/sub/",
    "dir/sub/y=Y",
    "dir/l->../a",
    "top->dir/x",
    "out->../../etc/passwd",
    "etc/passwd=mine",
    "dangling->nowhere",
  ),
);

const cases: [string, string[]][] = [
  ["COPY a /", ["/", "a=A"]],
  ["COPY a /new", ["/", "new=A"]],
  ["COPY a /new/", ["/", "new/", "new/a=A"]],
  ["COPY a b /d/", ["/", "d/", "d/a=A", "d/b=B"]],
  ["COPY dir /d", ["/", "d/", "d/l->../a", "d/sub/", "d/sub/y=Y", "d/x=X"]],
  ["COPY dir/ /d/", ["/", "d/", "d/l->../a", "d/sub/", "d/sub/y=Y", "d/x=X"]],
  ["COPY dir/* /d/", ["/", "d/", "d/l=A", "d/y=Y", "d/x=X"]],
  ["COPY [ab] /d/", ["/", "d/", "d/a=A", "d/b=B"]],
  ["COPY **/y /d/", ["/", "d/", "d/y=Y"]],
  ["COPY nothing* /d/", []],
  ["COPY top /t", ["/", "t=X"]],
  ["COPY ../../a /x", ["/", "x=A"]],
  ["COPY --exclude=sub --exclude=l dir /d", ["/", "d/", "d/x=X"]],
  ["COPY --parents dir/sub/y /p/", ["/", "p/", "p/dir/", "p/dir/sub/", "p/dir/sub/y=Y"]],
  ["COPY --parents dir/./sub/y /p/", ["/", "p/", "p/sub/", "p/sub/y=Y"]],
  // A link out of the context stays within it: it is the context's own etc/passwd.
  ["COPY out /x", ["/", "x=mine"]],
];
test.each(cases)("%s", async (line, expected) => {
  expect(await copied(line, context)).toEqual(expected);
});

const refused: [string, RegExp][] = [
  ["COPY missing /", /"\/missing" is not there/],
  ["COPY a/b /", /is not there/],
  ["COPY dang* /n/", /"\/dangling" is a link to what is not there/],
  ["COPY [ab] /d", /2 sources match, so the destination must be a directory/],
];
test.each(refused)("%s is refused", async (line, message) => {
  await expect(copied(line, context)).rejects.toThrow(message);
});

test("the destination follows the image's own links and keeps its directories as they are", async () => {
  const below = await tree([
    ...files("usr/", "lib->usr/lib", "evil->../../../etc", "etc/", "loop->loop", "file=f"),
    entry("usr/lib/", { type: "directory", mode: 0o711 }),
  ]);
  const made: LayerEntry[] = [];
  const deep = step("COPY a /lib/deep/");
  for await (const one of copyLayer(deep, [originSource(deep, context)], below)) made.push(one);
  expect(made.map(({ path, mode }) => [path, mode])).toEqual([
    ["/", 0o755],
    ["usr/", 0o755],
    ["usr/lib/", 0o711],
    ["usr/lib/deep/", 0o755],
    ["usr/lib/deep/a", 0o644],
  ]);
  expect(await copied("COPY a /evil/", context, below)).toEqual(["/", "etc/", "etc/a=A"]);
  await expect(copied("COPY a /loop/x", context, below)).rejects.toThrow(/no directory/);
  await expect(copied("COPY a /file/x", context, below)).rejects.toThrow(/no directory/);
  await expect(copied("COPY dir/sub /file", context, below)).rejects.toThrow(/can't be copied over|not a directory/);
  await expect(copied("COPY a b /file", context, below)).rejects.toThrow(/not a directory/);
  // With --link the layer does not know what is below.
  expect(await copied("COPY --link a /lib/", context, below)).toEqual(["/", "lib/", "lib/a=A"]);
});

test("a directory's own attributes are not copied, its content's are, and those of parents that are kept", async () => {
  const origin = await tree([
    entry("d/", { type: "directory", mode: 0o751 }),
    entry("d/sub/", { type: "directory", mode: 0o2711 }),
    entry("d/sub/f", { content: "", mode: 0o640 }),
  ]);
  const modes = async (line: string) => {
    const made: string[] = [];
    const one = step(line);
    for await (const { path, mode } of copyLayer(one, [originSource(one, origin)], emptyRoot)) {
      made.push(`${path} ${mode.toString(8)}`);
    }
    return made.slice(1);
  };
  expect(await modes("COPY d /n")).toEqual(["n/ 755", "n/sub/ 2711", "n/sub/f 640"]);
  expect(await modes("COPY --chmod=700 d /n/")).toEqual(["n/ 755", "n/sub/ 700", "n/sub/f 700"]);
  expect(await modes("COPY d/* /n/")).toEqual(["n/ 755", "n/f 640"]);
  expect(await modes("COPY --parents d/sub /n/")).toEqual(["n/ 755", "n/d/ 751", "n/d/sub/ 2711", "n/d/sub/f 640"]);
});

test("owners and modes", async () => {
  const below = await tree(files("etc/passwd=app:x:33:44::/:/x\n", "etc/group=web:x:55:\n"));
  const owners = async (flag: string) => {
    const made: LayerEntry[] = [];
    const flagged = step(`COPY ${flag} a /n/`);
    for await (const one of copyLayer(flagged, [originSource(flagged, context)], below)) made.push(one);
    return made.slice(-2).map(({ uid, gid, mode }) => [uid, gid, mode.toString(8)]);
  };
  expect(await owners("--chown=app")).toEqual([
    [33, 44, "755"],
    [33, 44, "644"],
  ]);
  expect(await owners("--chown=7:web --chmod=u+x,go=")).toEqual([
    [7, 55, "755"],
    [7, 55, "700"],
  ]);
  expect(await owners("--chown=9")).toEqual([
    [9, 9, "755"],
    [9, 9, "644"],
  ]);
  await expect(owners("--chown=nobody")).rejects.toMatchObject({ code: "invalid_user" });
  await expect(owners("--chown=70000")).rejects.toMatchObject({ code: "invalid_user" });
});

test("ADD unpacks archives, resolving the image's links, and nothing else", async () => {
  const tar = await collect(writeTar(files("lib/", "lib/f=F", "own->lib", "own/g=G", "h=H")));
  const origin = await tree([
    entry("x.tar", { content: tar }),
    entry("x.tgz", { content: gzipSync(tar) }),
    entry("x.tar.zst", { content: zstdCompressSync(tar) }),
    entry("x.gz", { content: gzipSync("no tar") }),
    entry("bad.tar", { content: await collect(writeTar(files("ok=1", "x/../../y=2"))) }),
  ]);
  const below = await tree(files("usr/lib/", "lib->usr/lib"));
  const unpacked = ["/", "usr/", "usr/lib/", "usr/lib/f=F", "own->lib", "usr/lib/g=G", "h=H"];
  for (const name of ["x.tar", "x.tgz", "x.tar.zst"]) {
    const made = await copied(`ADD ${name} /`, origin, below);
    expect(made.filter((path, index) => made.indexOf(path) === index)).toEqual(unpacked);
  }
  expect(await copied("ADD x.gz /d/", origin)).toEqual(["/", "d/", `d/x.gz=${gzipSync("no tar").toString()}`]);
  expect(await copied("ADD --unpack=false x.tar /d", origin)).toHaveLength(2);
  await expect(copied("ADD bad.tar /d/", origin)).rejects.toThrow(/has a "\.\."/);
});

test.each([
  ["a name with ..", files("../x=1"), /has a ".."/],
  ["a name with .. inside", files("a/../../x=1"), /has a ".."/],
  ["an absolute name", [entry("/etc/x", { content: "1" })], /is absolute/],
  ["a pipe", [entry("p", { type: "fifo" })], /is a fifo/],
  ["a file below a link", files("l->/etc", "l/x=1"), /no directory/],
  ["a hard link out", [entry("h", { type: "hardlink", target: "../x" })], /has a ".."/],
  ["a hard link to nothing", [entry("h", { type: "hardlink", target: "x" })], /not there/],
] as [string, LayerEntry[], RegExp][])("a context with %s is refused", async (_what, entries, message) => {
  await expect(tree(entries)).rejects.toThrow(message);
  await expect(tree(entries)).rejects.toMatchObject({ code: "invalid_context" });
});

test("a context with a device is refused", async () => {
  const device = (tar: Buffer): Buffer => {
    tar.write("3", 156);
    let sum = 8 * 0x20;
    for (const [index, byte] of tar.subarray(0, 512).entries()) if (index < 148 || index >= 156) sum += byte;
    tar.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148, "latin1");
    return tar;
  };
  await expect(tree([entry("null")], device)).rejects.toThrow(/is a device/);
});

test("a context that is cut short or no tar at all is refused", async () => {
  await expect(tree(files("a=1"), (tar) => gzipSync(tar).subarray(0, 60))).rejects.toMatchObject({
    code: "invalid_context",
  });
  await expect(tree(files("a=1"), () => Buffer.from("FROM scratch\n".repeat(100)))).rejects.toMatchObject({
    code: "invalid_context",
  });
});

test(".dockerignore leaves out what it names, and directories only when nothing in them is kept", async () => {
  const rules = IgnoreRules.parse("# comment\n*\n!dir/sub\n**/y\n!dir/sub/y\n");
  const filtered = context.without(rules);
  expect(await copied("COPY . /", filtered)).toEqual(["/", "dir/", "dir/sub/", "dir/sub/y=Y"]);
});
