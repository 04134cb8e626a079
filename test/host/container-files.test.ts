import { spawn } from "node:child_process";
import { once } from "node:events";
import {
  chmodSync,
  existsSync,
  linkSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readlinkSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { ContainerRoot } from "../../src/agent/container-root.ts";
import { readTree, statPath } from "../../src/agent/file-read.ts";
import { writeTree } from "../../src/agent/file-write.ts";
import type { LayerEntry } from "../../src/image/layer-entry.ts";
import { collect, entry, gather } from "../support/image.ts";

// What a tenant may have put into its root, on a plain directory that stands for one; ids of a container as the host has them.
const idBase = 1_048_576;
const never = new AbortController().signal;

let outside: string;
let dir: string;
let root: ContainerRoot;

beforeEach(() => {
  outside = mkdtempSync(join(tmpdir(), "berth-files-"));
  writeFileSync(join(outside, "canary"), "of the host");
  dir = join(outside, "root");
  mkdirSync(dir);
  root = new ContainerRoot({ path: dir, idBase, signal: never, close: () => undefined });
});
afterEach(() => {
  root.close();
  rmSync(outside, { recursive: true, force: true });
});

const inside = (path: string) => join(dir, path);
const put = (directory: string, ...entries: LayerEntry[]) => writeTree(root, directory, Readable.from(entries), never);
const got = async (path: string) => {
  const entries: [string, string, string][] = [];
  for await (const each of readTree(root, path, never)) {
    entries.push([
      each.path,
      each.type,
      each.type === "file" ? String(await collect(toAsync(each.content))) : each.target,
    ]);
  }
  return entries;
};
const toAsync = (content: LayerEntry["content"]) => Readable.from(content) as AsyncIterable<Uint8Array>;

/** A process of the tenant's that makes `a` and `b` trade places for ever, until the returned function has ended it. */
async function swapping(): Promise<() => Promise<unknown>> {
  const script = `const fs = require("node:fs"); process.chdir(${JSON.stringify(dir)}); console.log("on");
    for (;;) for (const [from, to] of [["a", "c"], ["b", "a"], ["a", "b"], ["c", "a"]]) try { fs.renameSync(from, to); } catch {}`;
  const swapper = spawn(process.execPath, ["-e", script]);
  const ended = once(swapper, "exit");
  await once(swapper.stdout, "data");
  return () => {
    swapper.kill("SIGKILL");
    return ended;
  };
}

describe("reading", () => {
  test("gives a tree with its links, owners and modes, and a file alone", async () => {
    await put(
      "/",
      entry("app/", { type: "directory", mode: 0o750, uid: 1000, gid: 1001 }),
      entry("app/run", { content: "#!/bin/sh", mode: 0o4755, uid: 1000, gid: 1001 }),
      entry("app/again", { type: "hardlink", target: "app/run" }),
      entry("app/link", { type: "symlink", target: "/nowhere" }),
    );
    expect(await got("/app")).toEqual([
      ["app", "directory", ""],
      ["app/again", "file", "#!/bin/sh"],
      ["app/link", "symlink", "/nowhere"],
      ["app/run", "hardlink", "app/again"],
    ]);
    expect(await got("/app/run")).toEqual([["run", "file", "#!/bin/sh"]]);
    expect(await statPath(root, "/app/run")).toMatchObject({
      name: "run",
      type: "file",
      mode: 0o4755,
      uid: 1000,
      gid: 1001,
      size: 9,
      mtime: "2023-11-14T22:13:20.000Z",
    });
    expect((await got("/")).map(([path]) => path)).toEqual([".", "./app", "./app/again", "./app/link", "./app/run"]);
  });

  test("no link leads out: neither an absolute one, nor one with dots, nor one of /proc", async () => {
    const links = {
      absolute: join(outside, "canary"),
      dots: "../canary",
      "many-dots": `${"../".repeat(40)}${outside.slice(1)}/canary`,
      magic: "/proc/self/cwd/../canary",
    };
    for (const [name, target] of Object.entries(links)) symlinkSync(target, inside(name));
    symlinkSync("/", inside("all"));
    // By its path alone, without being resolved inside the root, it would be read.
    expect(readFileSync(inside("absolute"), "utf8")).toBe("of the host");
    expect(readFileSync(inside("dots"), "utf8")).toBe("of the host");
    for (const name of Object.keys(links)) {
      await expect(got(`/${name}`), name).rejects.toMatchObject({ code: "file_not_found" });
      await expect(got(`/all/${name}`), name).rejects.toMatchObject({ code: "file_not_found" });
      await expect(statPath(root, `/${name}`)).rejects.toMatchObject({ code: "file_not_found" });
    }
    await expect(got(join(outside, "canary"))).rejects.toMatchObject({ code: "file_not_found" });
    expect((await got("/")).map(([, type, value]) => [type, value])).not.toContainEqual(["file", "of the host"]);
  });

  test("a directory that is swapped for a link all the time never gives what is outside", async () => {
    mkdirSync(inside("a"));
    writeFileSync(inside("a/canary"), "of the tenant");
    symlinkSync(outside, inside("b"));
    const stop = await swapping();
    try {
      const seen = new Set<string>();
      const plain = new Set<string>();
      for (const end = performance.now() + 3_000; performance.now() < end; ) {
        const all = await got("/").catch(() => []);
        for (const [, type, text] of all) if (type === "file") seen.add(text);
        try {
          plain.add(readFileSync(inside("a/canary"), "utf8"));
        } catch {
          // Between two names.
        }
      }
      expect([...seen]).toEqual(["of the tenant"]);
      expect([...plain].sort()).toEqual(["of the host", "of the tenant"]);
    } finally {
      await stop();
    }
  });

  test("a FIFO is not waited for, a socket is left out, what vanishes or grows does no harm", async () => {
    spawn("mkfifo", [inside("fifo")]);
    const server = (await import("node:net")).createServer().listen(inside("socket"));
    await once(server, "listening");
    await expect.poll(() => existsSync(inside("fifo"))).toBe(true);
    expect(await got("/")).toEqual([
      [".", "directory", ""],
      ["./fifo", "fifo", ""],
    ]);
    expect(await got("/fifo")).toEqual([["fifo", "fifo", ""]]);
    server.close();

    writeFileSync(inside("log"), "x".repeat(100));
    const [grown] = await gather(readTree(root, "/log", never));
    writeFileSync(inside("log"), "y".repeat(50));
    expect(grown?.size).toBe(100);
  });

  test("a tree that is too deep, and a file that is larger than any archive, are refused", async () => {
    let path = dir;
    for (let depth = 0; depth < 600; depth++) {
      path += "/d";
      mkdirSync(path);
    }
    await expect(got("/")).rejects.toMatchObject({ code: "body_too_large" });
    rmSync(inside("d"), { recursive: true });
    const { truncateSync } = await import("node:fs");
    writeFileSync(inside("sparse"), "");
    truncateSync(inside("sparse"), 65 * 2 ** 30);
    await expect(got("/sparse")).rejects.toMatchObject({ code: "body_too_large" });
  });

  test("stops when it is told to", async () => {
    writeFileSync(inside("file"), "");
    const abort = new AbortController();
    abort.abort(new Error("enough"));
    await expect(gather(readTree(root, "/", abort.signal))).rejects.toThrow("enough");
  });
});

describe("writing", () => {
  test("replaces files and links, keeps directories, and makes those that are missing", async () => {
    await put("/", entry("a/b/c", { content: "one" }));
    chmodSync(inside("a"), 0o700);
    expect(
      await put("/a", entry("b/c", { content: "two", mode: 0o600, uid: 5 }), entry("./", { type: "directory" })),
    ).toEqual({
      entries: 2,
      bytes: 3,
    });
    expect(readFileSync(inside("a/b/c"), "utf8")).toBe("two");
    const { mode, uid, gid } = lstatSync(inside("a/b/c"));
    expect([mode & 0o7777, uid, gid]).toEqual([0o600, idBase + 5, idBase]);
    expect(lstatSync(inside("a/b")).uid).toBe(idBase);
    expect(lstatSync(inside("a")).mode & 0o7777).toBe(0o700);
    await put("/a/b", entry("c", { type: "symlink", target: "d" }));
    expect(readlinkSync(inside("a/b/c"))).toBe("d");
    await put("/a/b", entry("c", { content: "three" }));
    expect(readFileSync(inside("a/b/c"), "utf8")).toBe("three");
    expect((await got("/a/b")).map(([path]) => path)).toEqual(["b", "b/c"]);
  });

  test("owners that no container has are root's, setuid is the container's own", async () => {
    await put(
      "/",
      entry("far", { uid: 501_000, gid: 70_000, content: "x" }),
      entry("su", { mode: 0o4755, content: "x" }),
    );
    for (const name of ["far", "su"])
      expect([lstatSync(inside(name)).uid, lstatSync(inside(name)).gid]).toEqual([idBase, idBase]);
    expect(lstatSync(inside("su")).mode & 0o7777).toBe(0o4755);
  });

  test.each([
    ["..", entry("../canary", { content: "changed" }), "invalid_archive"],
    [".. within", entry("a/../../canary", { content: "changed" }), "invalid_archive"],
    ["a device", entry("device", { type: "device" }), "invalid_archive"],
    ["a FIFO", entry("fifo", { type: "fifo" }), "invalid_archive"],
    ["a link to ..", entry("x", { type: "hardlink", target: "../canary" }), "invalid_archive"],
    ["a link through a link", entry("x", { type: "hardlink", target: "out/canary" }), "invalid_path|file_not_found"],
    ["a link to nothing", entry("x", { type: "hardlink", target: "nothing" }), "file_not_found"],
    ["a file where a directory is", entry("directory", { content: "x" }), "invalid_path"],
    ["a directory where a file is", entry("file", { type: "directory" }), "invalid_path"],
    ["below a file", entry("file/x", { content: "x" }), "invalid_path"],
    ["a name that is not UTF-8 as a directory", entry("\xff/x", { content: "x" }), "invalid_archive"],
    ["a name that is too long", entry("n".repeat(300), { content: "x" }), "invalid_path"],
  ])("refuses %s, and changes nothing outside", async (_, bad, codes) => {
    symlinkSync(outside, inside("out"));
    mkdirSync(inside("directory"));
    writeFileSync(inside("directory/kept"), "");
    writeFileSync(inside("file"), "kept");
    const error: unknown = await put("/", bad).catch((thrown: unknown) => thrown);
    expect(codes.split("|")).toContain((error as { code?: string }).code);
    expect(readFileSync(join(outside, "canary"), "utf8")).toBe("of the host");
    expect(readFileSync(inside("file"), "utf8")).toBe("kept");
    expect((await got("/")).filter(([path]) => path.includes(".berth-"))).toEqual([]);
  });

  test("through a link out of the root it stays inside", async () => {
    symlinkSync(outside, inside("out"));
    // By its path alone it would go there.
    writeFileSync(join(inside("out"), "probe"), "");
    expect(existsSync(join(outside, "probe"))).toBe(true);
    await expect(put("/out", entry("canary", { content: "changed" }))).rejects.toMatchObject({
      code: "file_not_found",
    });
    await expect(put("/", entry("out/canary", { content: "changed" }))).rejects.toMatchObject({
      code: "file_not_found",
    });
    mkdirSync(inside(outside.slice(1)), { recursive: true });
    await put("/", entry("out/canary", { content: "inside" }));
    expect(readFileSync(inside(`${outside.slice(1)}/canary`), "utf8")).toBe("inside");
    symlinkSync("../canary", inside("file"));
    await put("/", entry("file", { content: "replaced" }));
    expect(readFileSync(inside("file"), "utf8")).toBe("replaced");
    linkSync(join(outside, "canary"), inside("hard"));
    await put("/", entry("hard", { content: "replaced" }));
    expect(readFileSync(join(outside, "canary"), "utf8")).toBe("of the host");
  });

  test("into a directory that is swapped for a link all the time it never writes outside", async () => {
    mkdirSync(inside("a"));
    symlinkSync(outside, inside("b"));
    const stop = await swapping();
    try {
      let done = 0;
      for (const end = performance.now() + 3_000; performance.now() < end; ) {
        const tries = [
          put("/", entry("a/canary", { content: "changed" })),
          put("/a", entry("new", { content: "changed" })),
        ];
        for (const { status } of await Promise.allSettled(tries)) if (status === "fulfilled") done++;
        expect(readFileSync(join(outside, "canary"), "utf8")).toBe("of the host");
        expect(existsSync(join(outside, "new"))).toBe(false);
      }
      expect(done).toBeGreaterThan(0);
    } finally {
      await stop();
    }
  });

  test("a source that breaks off leaves no half a file", async () => {
    const broken = entry("file", { content: "whole" });
    broken.content = (async function* () {
      yield Buffer.from("wh");
      await Promise.resolve();
      throw new Error("broke off");
    })();
    await expect(put("/", broken)).rejects.toThrow("broke off");
    expect(await got("/")).toEqual([[".", "directory", ""]]);
  });
});
