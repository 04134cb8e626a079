import { randomBytes } from "node:crypto";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import type { Server } from "node:http";
import type { AddressInfo } from "node:net";
import { dirname } from "node:path";
import { afterAll, beforeAll, beforeEach, describe, expect, inject, test } from "vitest";
import { recoverPushes } from "../../src/routes/git/push-builds.ts";
import { Repositories } from "../../src/routes/git/repositories.ts";
import { closeServer, listen } from "../../src/routes/listener.ts";
import { DrivenHost } from "../support/driven-host.ts";
import { GitClient } from "../support/git-client.ts";

// The real git pushes to the API; the real worker builds and deploys.

let host: DrivenHost;
let server: Server;
let base = "";

beforeAll(async () => {
  host = await DrivenHost.create(inject("postgresSocketDir"));
  server = await listen(host.api.app, { host: "127.0.0.1", port: 0 });
  base = `127.0.0.1:${String((server.address() as AddressInfo).port)}`;
  await host.start();
  await host.buildBusybox("box:1");
});
afterAll(async () => {
  await closeServer(server, 0);
  await host.destroy();
});

let client: GitClient;
beforeEach(async () => {
  client = await GitClient.create();
  return () => client.remove();
});

const url = (name: string, token = host.project.tokens.deployer, project = "default") =>
  `http://git:${token}@${base}/git/${project}/${name}.git`;

const web = (text: string, more = "") => ({
  Dockerfile: `FROM box:1\nCOPY index.html /www/\n${more}EXPOSE 8080\nCMD ["httpd", "-f", "-p", "8080", "-h", "/www"]\n`,
  "index.html": `${text}\n`,
});

const page = async (address: string) => (await fetch(address)).text();

interface Build {
  id: string;
  status: string;
  source: { commit: string; ref: string; url: string };
}
/** What runs in a source's repository. */
const runsIn = (sourceId: string) =>
  readdirSync("/proc").filter((pid) => {
    try {
      return /^\d+$/.test(pid) && readFileSync(`/proc/${pid}/environ`, "latin1").includes(`/${sourceId}.git`);
    } catch {
      return false;
    }
  });

/** A tree with a directory of the name `.git`, as no git would make it. */
const evilTree = (blob: string) => Buffer.concat([Buffer.from("160000 .git\0"), Buffer.from(blob, "hex")]);

const builds = async () => (await host.ask<{ items: Build[] }>("GET", "/v1/builds")).body.items;

describe("git push to Berth", () => {
  test("makes a source, prints the build as it goes and the URL, which answers; a second push switches it", async () => {
    const commit = await client.commit(web("one"));
    const first = await client.git("push", url("hello"), "main");
    expect(first.exitCode, first.stderr).toBe(0);
    expect(first.stderr).toMatch(/remote: Building main at [0-9a-f]{12} \(bld_\w+\)/);
    expect(first.stderr).toMatch(/remote: .*COPY index\.html/);
    const [, address = ""] = /remote: hello is at (http:\/\/127\.0\.0\.1:\d+)/.exec(first.stderr) ?? [];
    expect(await page(address)).toBe("one\n");
    expect((await builds())[0]).toMatchObject({
      status: "succeeded",
      source: { commit, ref: "main", url: "/git/default/hello.git" },
    });

    await client.commit(web("two"));
    const second = await client.git("push", url("hello"), "main");
    expect(second.stderr).toContain(`hello is at ${address}`);
    expect(await page(address)).toBe("two\n");

    // The repository can be had again.
    const clone = await client.git("clone", "--quiet", url("hello", host.project.tokens.viewer), "again");
    expect(clone.exitCode, clone.stderr).toBe(0);
    expect(existsSync(`${client.directory}/again/index.html`)).toBe(true);
  });

  test("whose build fails says where, keeps the commit, and what ran before goes on", async () => {
    await client.commit(web("good"));
    const good = await client.git("push", url("failing"), "main");
    const [, address = ""] = /is at (http:\S+)/.exec(good.stderr) ?? [];
    const commit = await client.commit(web("bad", "RUN echo it is broken >&2; exit 7\n"));
    const bad = await client.git("push", url("failing"), "main");
    expect(bad.exitCode).toBe(0);
    expect(bad.stderr).toContain("it is broken");
    expect(bad.stderr).toMatch(/remote: The build failed: Dockerfile line 3: RUN .*7/);
    expect(bad.stderr).toContain("What ran before goes on");
    expect(await page(address)).toBe("good\n");
    expect((await client.git("ls-remote", url("failing"))).stdout).toContain(commit);
  });

  test("has the secrets of its source for its build, which no image keeps", async () => {
    const secrets = { npm: "token-of-eighteen!" };
    const source = { name: "sealed", provider: "berth", secrets, deploy: { publishAll: true } };
    expect((await host.ask("POST", "/v1/sources", source)).status).toBe(201);
    const read = "RUN --mount=type=secret,id=npm,required=true wc -c </run/secrets/npm >/www/size\n";
    await client.commit(web("sealed", read));
    const pushed = await client.git("push", url("sealed"), "main");
    const [, address = ""] = /is at (http:\S+)/.exec(pushed.stderr) ?? [];
    expect(await page(`${address}/size`), pushed.stderr).toBe("18\n");
    expect(pushed.stderr).not.toContain(secrets.npm);
  });

  test("of a branch that does not build keeps it and says so; the default branch is what came first", async () => {
    await client.commit({ Dockerfile: "FROM box:1\n" });
    await client.git("branch", "-m", "trunk");
    const before = (await builds()).length;
    const first = await client.git("push", url("branches"), "trunk");
    expect(first.stderr).toContain("Building trunk at");
    await client.git("branch", "side");
    await client.commit({ other: "file" });
    const more = await client.git("push", url("branches"), "HEAD:refs/heads/side", "HEAD:refs/tags/v1");
    expect(more.stderr).toContain("side is kept and does not build");
    expect(more.stderr).toContain("v1 is kept and does not build");
    expect((await builds()).length).toBe(before + 1);
  });

  test("whose client goes away is built all the same", async () => {
    await client.commit({ Dockerfile: 'FROM box:1\nRUN sleep 3\nCMD ["sleep", "600"]\n' });
    const { child, ended } = client.start(["push", url("away"), "main"]);
    await expect.poll(async () => (await builds())[0]?.status).toBe("running");
    const { body: source } = await host.ask<{ id: string }>("GET", "/v1/sources/away");
    expect(runsIn(source.id)).not.toEqual([]);
    process.kill(-(child.pid ?? 0), "SIGKILL");
    await ended;
    await expect.poll(() => runsIn(source.id)).toEqual([]);
    await expect.poll(async () => (await builds())[0]?.status, { timeout: 30_000 }).toBe("succeeded");
  });

  test("whose API was killed before it looked is built by the next one", async () => {
    await client.commit({ Dockerfile: "FROM box:1\n" });
    await client.git("push", url("unseen"), "main");
    const { body: source } = await host.ask<{ id: string }>("GET", "/v1/sources/unseen");
    const path = host.api.services.repositories.pathOf(host.project.id, source.id);
    const limits = { repositoryBytes: 1e9, packBytes: 1e9 };
    await new Repositories(dirname(dirname(path)), limits).beginPush(path);
    const commit = await client.commit({ more: "of it" });
    await client.git("push", path, "main");
    expect((await builds())[0]?.source.commit).not.toBe(commit);
    await recoverPushes(host.api.services);
    expect((await builds())[0]?.source.commit).toBe(commit);
    expect(readdirSync(`${path}/berth-pushes`)).toEqual([]);
  });

  test("may be of several megabytes, which come in pieces, and be fetched again", async () => {
    const blob = randomBytes(3 * 2 ** 20);
    await client.commit({ Dockerfile: "FROM box:1\nCOPY blob /\n", blob });
    const pushed = await client.git("push", url("pieces"), "main");
    expect(pushed.stderr).toContain("Building main");
    await client.git("clone", "--quiet", url("pieces"), "again");
    expect(readFileSync(`${client.directory}/again/blob`).equals(blob)).toBe(true);
  });

  test("runs no hook and no program that the pushed content names", async () => {
    const mark = `${client.directory}/ran`;
    await client.commit({
      Dockerfile: "FROM box:1\n",
      ".gitattributes": "* filter=evil export-subst\n",
      "hooks/post-receive.sh": `#!/bin/sh\ntouch ${mark}\n`,
      "hooks/post-receive": `#!/bin/sh\ntouch ${mark}\n`,
      config: `[core]\n\thooksPath = hooks\n[filter "evil"]\n\tsmudge = touch ${mark}\n`,
    });
    const pushed = await client.git("push", url("hooks"), "main");
    expect(pushed.stderr).toContain("Building main");
    expect(existsSync(mark)).toBe(false);
  });
});

describe("a push is refused", () => {
  const refused = async (address: string) => {
    await client.commit({ Dockerfile: "FROM box:1\n" });
    const { exitCode, stderr } = await client.git("push", address, "main");
    expect(exitCode).not.toBe(0);
    return stderr;
  };

  test("without a token, with a wrong one, or with one that may only look", async () => {
    expect(await refused(`http://${base}/git/default/x.git`)).toMatch(/could not read Username|Authentication failed/);
    expect(await refused(url("x", "berth_wrong"))).toContain("Authentication failed");
    expect(await refused(url("x", host.project.tokens.viewer))).toContain("needs the role deployer");
    expect((await host.ask("GET", "/v1/sources/x")).status).toBe(404);
  });

  test("to another project, as if it did not exist", async () => {
    const other = await host.api.project("other");
    await client.commit({ Dockerfile: "FROM box:1\n" });
    await client.git("push", url("theirs", other.tokens.deployer, "other"), "main");
    const said = await refused(url("theirs", host.project.tokens.admin, "other"));
    expect(said).toContain("not found");
    expect(said.replaceAll("other", "nobody")).toBe(
      (await refused(url("theirs", host.project.tokens.admin, "nobody"))).replaceAll("other", "nobody"),
    );
    const clone = await client.git("ls-remote", url("theirs", host.project.tokens.admin, "other"));
    expect(clone.stderr).toContain("not found");
  });

  test("that is larger than a push may be; nothing of it stays", async () => {
    await client.commit({ Dockerfile: "FROM box:1\n", garbage: randomBytes(12 * 2 ** 20) });
    const { exitCode, stderr } = await client.git("push", url("large"), "main");
    expect(exitCode).not.toBe(0);
    expect(stderr).toMatch(/maximum allowed size|HTTP 413|hung up|disconnected/);
    const { body: source } = await host.ask<{ id: string }>("GET", "/v1/sources/large");
    const repository = host.api.services.repositories.pathOf(host.project.id, source.id);
    await expect
      .poll(() => readdirSync(`${repository}/objects`).filter((name) => name.includes("incoming")))
      .toEqual([]);
    expect((await client.git("ls-remote", url("large"))).stdout).toBe("");
  });

  test("that changes more refs than one push may", async () => {
    const commit = await client.commit({ Dockerfile: "FROM box:1\n" });
    const many = Array.from({ length: 101 }, (_, i) => `${commit}:refs/tags/t${String(i)}`);
    const { exitCode, stderr } = await client.git("push", url("refs"), ...many);
    expect(exitCode).not.toBe(0);
    expect(stderr).toContain("A push may change 100 refs, and this one has 101.");
    const some = await client.git("push", url("refs"), ...many.slice(1));
    expect(some.exitCode, some.stderr).toBe(0);
  });

  test("whose refs or trees have names that reach where they should not", async () => {
    const commit = await client.commit({ Dockerfile: "FROM box:1\n" });
    const bad = await client.git("push", url("names"), `${commit}:refs/heads/../../hooks/update`);
    expect(bad.exitCode).not.toBe(0);
    // A tree with an entry that git's check of objects refuses.
    const evil = client.start(["hash-object", "-w", "-t", "tree", "--literally", "--stdin"], {}, evilTree(commit));
    const tree = (await evil.ended).stdout.trim();
    const made = (await client.git("commit-tree", tree, "-m", "evil")).stdout.trim();
    // A repository without the check takes it.
    await client.git("init", "--quiet", "--bare", "unchecked");
    expect((await client.git("push", "./unchecked", `${made}:refs/heads/main`)).exitCode).toBe(0);
    const pushed = await client.git("push", url("names"), `${made}:refs/heads/main`);
    expect(pushed.exitCode).not.toBe(0);
    expect(pushed.stderr).toMatch(/hasDotgit|fsck error/);
  });

  test("that is not git's protocol", async () => {
    const headers = { authorization: `Basic ${btoa(`x:${host.project.tokens.deployer}`)}` };
    const at = `http://${base}/git/default/junk.git`;
    const body = randomBytes(64 * 1024);
    const type = { "content-type": "application/x-git-receive-pack-request" };
    const answer = await fetch(`${at}/git-receive-pack`, { method: "POST", headers: { ...headers, ...type }, body });
    expect(answer.ok ? await answer.text() : "refused").not.toContain("unpack ok");
    expect((await fetch(`${at}/HEAD`, { headers })).status).toBe(404);
    expect((await fetch(`${at}/info/refs`, { headers })).status).toBe(400);
    expect((await fetch(`${at}/objects/info/packs`, { headers })).status).toBe(404);
    expect(
      (await fetch(`http://${base}/git/default/..%2f..%2fx.git/info/refs?service=git-upload-pack`, { headers })).status,
    ).toBe(404);
  });
});
