import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { chmodSync, mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { buffer } from "node:stream/consumers";
import { afterAll, beforeAll, expect, test } from "vitest";
import { parseGitAddress } from "../../src/core/git-source.ts";
import { withGitTree } from "../../src/engine/build/git-tree.ts";
import { OutboundPolicy } from "../../src/image/outbound.ts";
import { writeTar } from "../../src/image/tar-write.ts";
import { type BuildWorker, startBuildWorker } from "../support/builds.ts";
import { type GitServer, startGitServer } from "../support/git-server.ts";
import { collect, entry } from "../support/image.ts";

let worker: BuildWorker;
let git: GitServer;
let commit: string;
let tar: Buffer;
const requests: string[] = [];
/** A file whose server compares tags, and the statuses that it has answered. */
let tagged = { etag: '"1"', content: "one" };
const transfers: number[] = [];
const server = createServer((request, response) => {
  const path = request.url ?? "/";
  requests.push(path);
  if (path === "/tagged") {
    const same = request.headers["if-none-match"] === tagged.etag;
    transfers.push(same ? 304 : 200);
    response.writeHead(same ? 304 : 200, { etag: tagged.etag }).end(same ? undefined : tagged.content);
  } else if (path.endsWith(".tar.xz")) response.end(compressed("xz"));
  else response.writeHead(200, { "last-modified": "Tue, 14 Nov 2023 22:13:20 GMT" }).end(`content of ${path}`);
});
const allowed = { outboundAllow: ["127.0.0.0/8"] };

const compressed = (program: "xz" | "bzip2") => execFileSync(program, ["-c"], { input: tar });
const at = (path: string) => `http://127.0.0.1:${String((server.address() as AddressInfo).port)}${path}`;
const repository = (path: string) => `http://127.0.0.1:${String(git.port)}${path}`;

beforeAll(async () => {
  const dockerfile = entry("Dockerfile", { content: "FROM scratch\nCOPY lib /lib\n" });
  tar = await collect(writeTar([dockerfile, entry("lib/", { type: "directory" }), entry("lib/f", { content: "F" })]));
  await new Promise<void>((listening) => server.listen(0, "127.0.0.1", listening));
  [worker, git] = await Promise.all([startBuildWorker(), startGitServer()]);
  git.commit("main", { "a.txt": "1", "docs/page": "page", "run.sh": "#!/bin/sh\n" });
  git.git("tag", "v1");
  commit = git.commit("main", { "a.txt": "2" });
  git.git("update-ref", "refs/pull/1/head", commit);
  git.commit("main", { "a.txt": "3" });
});
afterAll(async () => {
  await worker.stop();
  await git.close();
  server.closeAllConnections();
  server.close();
});

test("ADD of URLs and local files: names, modes, times of the server; its digest is what is reused", async () => {
  const dockerfile = [
    "FROM scratch",
    `ADD ${at("/x/one.txt")} local /d/`,
    `ADD --chmod=755 --chown=7:8 ${at("/tool")} /bin/tool`,
  ];
  const built = await worker.build("urls", dockerfile, { local: "L" }, allowed);
  expect(built.error).toBeNull();
  expect(built.files).toMatchObject({ "/d/one.txt": "600 0:0", "/d/local": "644 0:0", "/bin/tool": "755 7:8" });
  const again = await worker.build("urls", dockerfile, { local: "L" }, allowed);
  expect(again.image?.digest).toBe(built.image?.digest);
  expect(again.steps.slice(1).map(({ cached }) => cached)).toEqual([true, true]);
});

test("a checksum is checked, and with it nothing is downloaded again", async () => {
  const sum = createHash("sha256").update("content of /sum").digest("hex");
  const dockerfile = ["FROM scratch", `ADD --checksum=sha256:${sum} ${at("/sum")} /sum`];
  requests.length = 0;
  expect((await worker.build("sum", dockerfile, {}, allowed)).files["/sum"]).toBe("600 0:0");
  expect((await worker.build("sum", dockerfile, {}, allowed)).steps[1]?.cached).toBe(true);
  expect(requests).toEqual(["/sum"]);
  const wrong = await worker.build(
    "sum",
    ["FROM scratch", `ADD --checksum=sha256:${"0".repeat(64)} ${at("/sum")} /sum`],
    {},
    allowed,
  );
  expect(wrong.error).toMatchObject({ code: "digest_mismatch", facts: { line: 2 } });
});

test("without a checksum the server is asked whether it is the same; if so nothing is downloaded, unless a step needs it", async () => {
  const dockerfile = (first: string) => ["FROM scratch", `COPY <<E /f\n${first}\nE`, `ADD ${at("/tagged")} /x`];
  const cached = async (first: string, more: { noCache?: boolean } = {}) => {
    const built = await worker.build("tagged", dockerfile(first), {}, { ...allowed, ...more });
    expect(built.error).toBeNull();
    expect(built.files["/x"]).toBe("600 0:0");
    return { cached: built.steps.at(-1)?.cached, transfers: transfers.splice(0) };
  };
  expect(await cached("a")).toEqual({ cached: false, transfers: [200] });
  expect(await cached("a")).toEqual({ cached: true, transfers: [304] });
  expect(await cached("b")).toEqual({ cached: false, transfers: [304, 200] });
  expect(await cached("b", { noCache: true })).toEqual({ cached: false, transfers: [200] });
  // Other bytes are another file; the same bytes with another tag are the same.
  tagged = { etag: '"2"', content: "one" };
  expect(await cached("b")).toEqual({ cached: true, transfers: [200] });
  tagged = { etag: '"3"', content: "two" };
  expect(await cached("b")).toEqual({ cached: false, transfers: [200] });
  // A server that says the same and then has something else.
  tagged = { etag: '"3"', content: "changed behind its tag" };
  const lied = await worker.build("tagged", dockerfile("c"), {}, allowed);
  expect(lied.error).toMatchObject({ code: "download_failed", facts: { line: 5 } });
  transfers.length = 0;
  expect(await cached("c")).toEqual({ cached: false, transfers: [304, 200] });
});

test("archives: local ones in every compression are unpacked, remote ones when they are asked to", async () => {
  const files = {
    "a.tar.xz": compressed("xz"),
    "a.tar.bz2": compressed("bzip2"),
    "no.xz": execFileSync("xz", ["-c"], { input: "x" }),
  };
  const built = await worker.build(
    "archives",
    [
      "FROM scratch",
      "ADD a.tar.xz /xz/",
      "ADD a.tar.bz2 /bz2/",
      "ADD no.xz /plain/",
      `ADD ${at("/dist.tar.xz")} /packed/`,
      `ADD --unpack=true ${at("/dist.tar.xz")} /unpacked/`,
    ],
    files,
    allowed,
  );
  expect(built.error).toBeNull();
  expect(Object.keys(built.files)).toEqual(
    expect.arrayContaining(["/xz/lib/f", "/bz2/lib/f", "/plain/no.xz", "/packed/dist.tar.xz", "/unpacked/lib/f"]),
  );
  const cut = await worker.build("cut", ["FROM scratch", "ADD a.tar.xz /"], { "a.tar.xz": cutOff(compressed("xz")) });
  expect(cut.error?.code).toMatch(/^invalid_/);
});

/** Whole enough to be seen as an archive. */
function cutOff(archive: Buffer): Buffer {
  return archive.subarray(0, archive.length - 20);
}

test("ADD of repositories: a ref's directory, a commit by the beginning of its id, with .git or without", async () => {
  const built = await worker.build(
    "git",
    [
      "FROM scratch",
      `ADD ${repository("/site.git#v1:docs")} /docs`,
      `ADD --checksum=${commit.slice(0, 7)} ${repository(`/site.git?commit=${commit.slice(0, 9)}`)} /short`,
      `ADD --checksum=${commit} ${repository("/site.git#refs/pull/1/head")} /pull`,
      `ADD --keep-git-dir=true ${repository("/site.git#main")} /kept`,
    ],
    {},
    allowed,
  );
  expect(built.error).toBeNull();
  expect(built.files).toMatchObject({
    "/docs/page": "644 0:0",
    "/short/run.sh": "755 0:0",
    "/pull/a.txt": "644 0:0",
    "/kept/.git/HEAD": "644 0:0",
  });
  expect(built.files).not.toHaveProperty("/short/.git");
  const wrong = await worker.build(
    "git",
    ["FROM scratch", `ADD --checksum=abc1234 ${repository("/site.git#v1")} /x`],
    {},
    allowed,
  );
  expect(wrong.error).toMatchObject({ code: "digest_mismatch" });
});

test("a tar behind a URL is the context, in any compression, checked and from allowed addresses only", async () => {
  const known = { kind: "tar" as const, url: at("/context.tar.xz"), checksum: null, digest: null, sizeBytes: null };
  const built = await worker.build("tar", [], {}, { ...allowed, source: known });
  expect(built.error).toBeNull();
  expect(Object.keys(built.files)).toContain("/lib/f");
  expect(built.fetched).toMatchObject({ kind: "tar", sizeBytes: compressed("xz").length });
  const wrong = { ...known, checksum: `sha256:${"0".repeat(64)}` };
  expect((await worker.build("tar", [], {}, { ...allowed, source: wrong })).error?.code).toBe("digest_mismatch");
  expect((await worker.build("tar", [], {}, { source: known })).error?.code).toBe("address_refused");
});

test("a pattern that matches nothing leaves nothing behind", async () => {
  const built = await worker.build("nothing", ["FROM scratch", "COPY a /a", "COPY nope* /d/"], { a: "1" });
  expect(built.error).toBeNull();
  expect(Object.keys(built.files)).toEqual(["/", "/a"]);
});

test("named contexts: an image in a stage's place, a repository's directory, a tar behind a URL", async () => {
  const base = await worker.build("other-base", ["FROM scratch", "COPY x /from-image"], { x: "1" });
  expect(base.error).toBeNull();
  const contexts = {
    base: "docker-image://other-base",
    docs: repository("/site.git#main:docs"),
    dist: at("/dist.tar.xz"),
  };
  const dockerfile = ["FROM base", "COPY --from=docs . /docs", "COPY --from=dist lib /lib", "CMD /x $nope"];
  const built = await worker.build("named", dockerfile, {}, { ...allowed, contexts });
  expect(built.error).toBeNull();
  expect(Object.keys(built.files)).toEqual(expect.arrayContaining(["/from-image", "/docs/page", "/lib/f"]));
  expect(built.warnings).toEqual(["JSONArgsRecommended"]);
  const again = await worker.build("named", dockerfile, {}, { ...allowed, contexts });
  expect(again.steps.slice(1, 3).map(({ cached }) => cached)).toEqual([true, true]);
});

test("a kept .git is a repository that git takes, with nothing changed in it", async () => {
  const directory = mkdtempSync(join(tmpdir(), "berth-keep-git-test-"));
  chmodSync(directory, 0o711);
  mkdirSync(join(directory, "checkout"));
  const sandboxes = { takeSlot: () => 1, idBaseOf: () => 2_000_000_000 + process.pid, freeSlot: () => undefined };
  const host = { sandboxes, outbound: new OutboundPolicy(["127.0.0.0/8"]), scratch: directory };
  const wanted = { ...parseGitAddress(repository("/site.git?tag=v1&keep-git-dir=1")), commit: null };
  try {
    const found = await withGitTree(wanted, null, host, new AbortController().signal, async (tree) => {
      execFileSync("tar", ["-x", "-C", join(directory, "checkout")], { input: await buffer(tree.tar) });
      return tree.commit;
    });
    const run = (...args: string[]) =>
      execFileSync("git", ["-C", join(directory, "checkout"), ...args], { encoding: "utf8" }).trim();
    expect(run("rev-parse", "HEAD")).toBe(found);
    expect(run("status", "--porcelain")).toBe("");
  } finally {
    rmSync(directory, { recursive: true });
  }
});

test("nothing is fetched from where builds may not connect to", async () => {
  for (const source of [at("/secret"), repository("/site.git")]) {
    requests.length = git.requests.length = 0;
    const built = await worker.build("private", ["FROM scratch", `ADD ${source} /x`]);
    expect(built.error).toMatchObject({ code: "address_refused", facts: { line: 2 } });
    expect([...requests, ...git.requests]).toEqual([]);
    expect((await worker.build("private", ["FROM scratch", `ADD ${source} /x`], {}, allowed)).error).toBeNull();
  }
});
