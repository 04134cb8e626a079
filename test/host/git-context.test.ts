import { execFile, spawnSync } from "node:child_process";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import { text } from "node:stream/consumers";
import { promisify } from "node:util";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { BerthError } from "../../src/core/errors.ts";
import {
  type GitAuth,
  type GitSource,
  parseGitRef,
  parseGitUrl,
  parseSubdirectory,
} from "../../src/core/git-source.ts";
import { type GitMeans, gitContext } from "../../src/engine/build/git-context.ts";
import { BuildReport } from "../../src/engine/build/report.ts";
import { FileBlobs } from "../../src/image/file-blobs.ts";
import { OutboundPolicy } from "../../src/image/outbound.ts";
import { readTar } from "../../src/image/tar-read.ts";
import { type BuildWorker, startBuildWorker } from "../support/builds.ts";
import { type GitServer, gitLogin, startGitServer } from "../support/git-server.ts";

/** A host id that nothing has: above all blocks of instances. */
const uid = 2_000_000_000 + process.pid;
const loopback = new OutboundPolicy(["127.0.0.0/8"]);
const unknown = { kind: "git" as const, ref: null, subdirectory: null, commit: null, digest: null, sizeBytes: null };

let server: GitServer;
let worker: BuildWorker;
let directory: string;
let blobs: FileBlobs;
let first: string;
let head: string;
let taken = 0;

beforeAll(async () => {
  directory = mkdtempSync(join(tmpdir(), "berth-git-context-test-"));
  chmodSync(directory, 0o711);
  mkdirSync(join(directory, "scratch"), { mode: 0o711 });
  blobs = new FileBlobs(join(directory, "blobs"));
  [server, worker] = await Promise.all([startGitServer(), startBuildWorker()]);
  first = server.commit("main", {
    Dockerfile: "FROM scratch\nCOPY . /\n",
    ".gitattributes": "secret.txt export-ignore\nid.txt export-subst\n",
    "secret.txt": "kept",
    "id.txt": "$Format:%H$",
    "site/page.html": "one",
    "site/run.sh": "#!/bin/sh\n",
    link: null,
  });
  server.git("tag", "-a", "-m", "first", "v1");
  head = server.commit("main", { "site/page.html": "two" });
  server.commit("feature/x", { "site/page.html": "three" });
});
afterAll(async () => {
  await worker.stop();
  await server.close();
  rmSync(directory, { recursive: true, force: true });
});
afterEach(async () => {
  expect(taken).toBe(0);
  expect(readdirSync(join(directory, "scratch"))).toEqual([]);
  await expect.poll(() => processesOf(uid)).toEqual([]);
});

function processesOf(id: number): string[] {
  return readdirSync("/proc").filter((name) => {
    if (!/^\d+$/.test(name)) return false;
    try {
      const status = readFileSync(`/proc/${name}/status`, "utf8");
      // What was killed is a zombie until the host's init has reaped it.
      return status.includes(`\nUid:\t${id}\t${id}\t${id}\t${id}\n`) && !/^State:\s+[ZX]/m.test(status);
    } catch {
      return false;
    }
  });
}

/** git as anybody runs it; beside the server, which is in this process. */
async function git(...args: string[]): Promise<string> {
  const { stdout } = await promisify(execFile)("git", args, {
    env: { PATH: process.env["PATH"], HOME: directory, GIT_CONFIG_NOSYSTEM: "1" },
    timeout: 30_000,
  });
  return stdout.trim();
}
const author = ["-c", "user.name=test", "-c", "user.email=test@example.org"];

const at = (path: string, host = "127.0.0.1") => `http://${host}:${server.port}${path}`;

/** Fetches, and reads the tar: path → mode and content or link. */
async function fetched(
  source: Partial<GitSource>,
  more: { outbound?: GitMeans["outbound"]; signal?: AbortSignal; auth?: GitAuth } = {},
): Promise<{ source: GitSource; files: Record<string, string>; log: string[] }> {
  const log: string[] = [];
  const report = new BuildReport((lines) => {
    log.push(...lines.map((line) => line.text));
    return Promise.resolve(true);
  }, 1);
  const known: GitSource[] = [];
  const means: GitMeans = {
    blobs,
    scratch: join(directory, "scratch"),
    sandboxes: { takeSlot: () => ++taken, idBaseOf: () => uid, freeSlot: () => taken-- },
    outbound: more.outbound ?? loopback,
    gitAuth: more.auth ?? null,
    fetched: (result) => {
      known.push(result);
      return Promise.resolve();
    },
  };
  const asked = { ...unknown, url: at("/site.git"), ...source };
  const digest = await gitContext(asked, means, report, more.signal ?? new AbortController().signal);
  await report.flush();
  const files: Record<string, string> = {};
  for await (const entry of readTar(await blobs.open(digest))) {
    const content = entry.type === "symlink" ? `-> ${entry.target}` : await text(Readable.from(entry.content));
    files[entry.path] = `${entry.mode.toString(8)} ${content}`.trim();
  }
  return { source: known[0] ?? asked, files, log };
}

const refusal = (source: Partial<GitSource>, more: Parameters<typeof fetched>[1] = {}) =>
  fetched(source, more).then(
    () => expect.unreachable("it was fetched"),
    (error: unknown) => {
      if (error instanceof BerthError) return { code: error.code, message: error.message };
      throw error;
    },
  );

test("the default branch, a branch, a tag and a commit: what the ref is now, as a checkout has it", async () => {
  const main = await fetched({});
  expect(main.source).toMatchObject({ commit: head, digest: expect.stringMatching(/^sha256:/) as string });
  expect(main.files).toMatchObject({
    "site/page.html": "644 two",
    "site/run.sh": "755 #!/bin/sh",
    link: "777 -> site",
    // Attributes that are for releases don't touch a context.
    "secret.txt": "644 kept",
    "id.txt": "644 $Format:%H$",
  });
  expect(main.log).toContain(`#0 git: commit ${head}`);
  expect((await fetched({ ref: "feature/x" })).files["site/page.html"]).toBe("644 three");
  for (const ref of ["v1", "refs/tags/v1", first]) {
    const { source, files } = await fetched({ ref });
    expect(source.commit).toBe(first);
    expect(files["site/page.html"]).toBe("644 one");
  }
});

test("a subdirectory is the context; the same source gives the same bytes", async () => {
  const site = await fetched({ subdirectory: "site" });
  expect(site.files).toEqual({ "page.html": "644 two", "run.sh": "755 #!/bin/sh" });
  expect(site.source.commit).toBe(head);
  expect((await fetched({ subdirectory: "site" })).source.digest).toBe(site.source.digest);
  // A file, a link to a directory, and what only looks like an expression.
  for (const subdirectory of ["Dockerfile", "link", "nope", "site^{tree}", "-site", ":/site"]) {
    expect(await refusal({ subdirectory })).toMatchObject({ code: "ref_not_found" });
  }
});

test("what was fetched by an earlier attempt is not fetched again", async () => {
  const { source } = await fetched({});
  const before = server.requests.length;
  expect((await fetched(source)).files).toHaveProperty("Dockerfile");
  expect(server.requests.length).toBe(before);
});

test("what can't be had is named", async () => {
  expect(await refusal({ ref: "nope" })).toEqual({
    code: "ref_not_found",
    message: `The git repository "${at("/site.git")}" has no branch, tag or commit "nope".`,
  });
  expect(await refusal({ ref: "0".repeat(40) })).toMatchObject({ code: "ref_not_found" });
  expect(await refusal({ ref: server.git("rev-parse", "HEAD:Dockerfile") })).toMatchObject({ code: "ref_not_found" });
  expect(await refusal({ url: at("/nope.git") })).toMatchObject({ code: "repository_not_found" });
  expect(await refusal({ url: at("/denied.git") })).toMatchObject({ code: "repository_denied" });
  expect(await refusal({ url: "http://127.0.0.1:1/x" })).toMatchObject({ code: "repository_unreachable" });
  const before = server.requests.length;
  expect((await refusal({ url: at("/moved.git") })).message).toContain("redirect");
  expect(server.requests.slice(before).every((path) => path.startsWith("/moved.git"))).toBe(true);
});

test("private addresses are refused before anything connects, by any name, unless they are allowed", async () => {
  const strict = { outbound: new OutboundPolicy([]) };
  const before = server.requests.length;
  for (const host of ["127.0.0.1", "localhost", "[::ffff:7f00:1]"]) {
    expect(await refusal({ url: at("/site.git", host) }, strict)).toMatchObject({ code: "address_refused" });
  }
  expect(server.requests.length).toBe(before);
  expect((await fetched({ url: at("/site.git", "localhost") })).source.commit).toBe(head);
});

test("git connects to the address that was checked, whatever the name resolves to", async () => {
  const outbound = { addressesOf: () => Promise.resolve(["127.0.0.1"]) };
  expect((await fetched({ url: at("/site.git", "git.invalid") }, { outbound })).source.commit).toBe(head);
});

test("a private repository is for who has its credentials", async () => {
  const url = at("/private.git");
  expect((await fetched({ url }, { auth: gitLogin })).source.commit).toBe(head);
  expect(await refusal({ url })).toMatchObject({ code: "repository_denied" });
  const wrong = await refusal({ url }, { auth: { ...gitLogin, password: "hunter3" } });
  expect(wrong.code).toBe("git_auth_failed");
  expect(wrong.message).not.toContain("hunter");
});

test("git runs as an id of its own, with credentials on no command line; a cancelled fetch ends at once and leaves no process", async () => {
  const cancel = new AbortController();
  const waiting = refusal({ url: at("/hang.git") }, { signal: cancel.signal, auth: gitLogin });
  await server.hanging;
  const processes = processesOf(uid);
  expect(processes.length).toBeGreaterThanOrEqual(2);
  for (const pid of processes) {
    const status = readFileSync(`/proc/${pid}/status`, "utf8");
    expect(status).toMatch(/^CapEff:\s+0+$/m);
    expect(status).toMatch(/^CapBnd:\s+0+$/m);
    expect(status).toMatch(/^NoNewPrivs:\s+1$/m);
    expect(status).toMatch(/^Groups:\s*$/m);
  }
  const all = (file: string) => processes.map((pid) => readFileSync(`/proc/${pid}/${file}`, "latin1")).join("\n");
  const basic = Buffer.from(`${gitLogin.username}:${gitLogin.password}`).toString("base64");
  // The probe finds them where they are: in the environment, which is for the id and root alone.
  expect(all("environ")).toContain(basic);
  expect(all("cmdline")).toContain("/hang.git");
  expect(all("cmdline")).not.toMatch(new RegExp(`hunter|${basic}`));
  cancel.abort(new BerthError("cancelled", "It was cancelled."));
  expect(await waiting).toMatchObject({ code: "cancelled" });
});

test("refs and URLs that would run programs are refused; told them, git does", () => {
  const mark = join(directory, "mark");
  const option = `--upload-pack=touch ${mark};`;
  const transport = `ext::touch ${mark}`;
  expect(() => parseGitRef(option)).toThrow(BerthError);
  expect(() => parseGitUrl(option)).toThrow(BerthError);
  expect(() => parseGitUrl(transport)).toThrow(BerthError);
  for (const args of [
    ["ls-remote", option, directory],
    ["-c", "protocol.ext.allow=always", "ls-remote", transport],
  ]) {
    expect(existsSync(mark)).toBe(false);
    spawnSync("git", args);
    expect(existsSync(mark), args.join(" ")).toBe(true);
    rmSync(mark);
  }
});

test("a subdirectory leads nowhere but into the commit's tree; followed in a checkout it leads to the host", async () => {
  const outside = join(directory, "outside");
  mkdirSync(outside);
  writeFileSync(join(outside, "canary"), "of the host");
  const checkout = join(directory, "checkout");
  const links = { "links/absolute": { link: outside }, "links/relative": { link: "../../outside" } };
  server.commit("links", { "site/page.html": "four", ...links });
  await git("clone", "--quiet", "--branch=links", at("/site.git"), checkout);
  const within = ["links/absolute", "links/relative"];
  const above = ["../outside", "site/../../outside", "links/../../outside"];
  for (const subdirectory of above) expect(() => parseSubdirectory(subdirectory)).toThrow(BerthError);
  // Also told what would have been refused, git looks into the tree alone.
  for (const subdirectory of [...within, ...above]) {
    expect(await refusal({ ref: "links", subdirectory }), subdirectory).toMatchObject({ code: "ref_not_found" });
    expect(readFileSync(join(checkout, subdirectory, "canary"), "utf8")).toBe("of the host");
  }
  const { files } = await fetched({ ref: "links", subdirectory: "links" });
  expect(files).toEqual({ absolute: `777 -> ${outside}`, relative: "777 -> ../../outside" });
});

test("submodules are not fetched, neither from a server nor from this machine; a clone that was to have them has them", async () => {
  const local = join(directory, "local");
  await git("init", "--quiet", "--initial-branch=main", local);
  writeFileSync(join(local, "canary"), "of the host");
  await git("-C", local, "add", "canary");
  await git("-C", local, ...author, "commit", "--quiet", "-m", "canary");
  const commit = await git("-C", local, "rev-parse", "HEAD");
  const modules = { far: at("/module.git"), near: local };
  const sections = Object.entries(modules).map(
    ([name, url]) => `[submodule "${name}"]\npath = ${name}\nurl = ${url}\n`,
  );
  server.commit("modules", { ".gitmodules": sections.join("") });
  const work = server.git("rev-parse", "--show-toplevel");
  for (const [name, id] of Object.entries({ far: first, near: commit })) {
    mkdirSync(join(work, name));
    server.git("update-index", "--add", "--cacheinfo", `160000,${id},${name}`);
  }
  server.commit("modules", {});

  const asked = () => server.requests.filter((path) => path.startsWith("/module.git")).length;
  const { files } = await fetched({ ref: "modules" });
  expect(Object.keys(files)).toEqual(expect.arrayContaining([".gitmodules", "far/", "near/"]));
  expect(Object.keys(files).filter((path) => /^(?:far|near)\/./.test(path))).toEqual([]);
  for (const subdirectory of ["far", "near"]) {
    expect(await refusal({ ref: "modules", subdirectory })).toMatchObject({ code: "ref_not_found" });
  }
  expect(asked()).toBe(0);

  const clone = join(directory, "with-modules");
  const allowed = ["-c", "protocol.file.allow=always", "clone", "--quiet", "--recurse-submodules"];
  await git(...allowed, "--branch=modules", at("/site.git"), clone);
  expect(asked()).toBeGreaterThan(0);
  expect(existsSync(join(clone, "far/Dockerfile"))).toBe(true);
  expect(readFileSync(join(clone, "near/canary"), "utf8")).toBe("of the host");
});

test("a build takes its Dockerfile and context from the repository", async () => {
  const source = { ...unknown, url: at("/site.git"), ref: "v1" };
  const answer = await worker.build("git", [], {}, { source, outboundAllow: ["127.0.0.0/8"] });
  expect(answer.error).toBeNull();
  expect(answer.fetched).toMatchObject({ commit: first });
  expect(answer.files["/site/run.sh"]).toBe("755 0:0");
  const refused = await worker.build("git", [], {}, { source });
  expect(refused.error).toMatchObject({ code: "address_refused" });
  expect(worker.leftovers()).toEqual([]);
});
