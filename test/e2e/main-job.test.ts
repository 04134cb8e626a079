import { readdirSync, statSync } from "node:fs";
import { createServer, type Server } from "node:net";
import { join } from "node:path";
import createClient from "openapi-fetch";
import { afterAll, beforeAll, expect, test } from "vitest";
import { Instance, type Run } from "../support/berth.ts";
import type { paths } from "../support/berth-api.d.ts";
import { GitClient } from "../support/git-client.ts";

// One instance through its life: first start with the example, a client made from openapi.yaml, a restart, the end.
let berth: Instance;
let run: Run;
let foreign: Server;
let urls: string[] = [];

const client = () => createClient<paths>({ baseUrl: berth.url, headers: { authorization: `Bearer ${berth.token}` } });
const page = (url: string) => fetch(url).then((response) => response.text());

beforeAll(() => {
  berth = Instance.create({ BERTH_DEMO: "1", BERTH_REGISTRY_MIRRORS: "docker.io=http://127.0.0.1:9" });
  foreign = createServer().listen(berth.config.portRange.first + 1, "127.0.0.1");
});
afterAll(async () => {
  foreign.close();
  await berth.destroy();
});

test("the first start builds the example and ends with two URLs that answer; a taken port is skipped and named", async () => {
  run = berth.start();
  const { first } = berth.config.portRange;
  await run.until(/Three things to try/);
  const answering = [...run.text.matchAll(/^ +\d+\.\d\d s {2}(\S+) answers on (http:\S+)(.*)$/gm)];
  urls = answering.map(([, , url]) => url ?? "");
  expect(answering.map(([, name, , note]) => [name, note])).toEqual([
    ["web-1", ""],
    ["web-2", ` (port ${String(first + 1)} is taken)`],
  ]);
  expect(urls).toEqual([`http://127.0.0.1:${String(first)}`, `http://127.0.0.1:${String(first + 2)}`]);
  expect(await page(urls[0] ?? "")).toContain("<code>web-1</code>");
  expect(await page(urls[1] ?? "")).toContain("<code>web-2</code>");
  expect(run.text).toContain(`the token is in ${join(berth.config.dataDir, "token")}`);
});

test("a client generated from openapi.yaml runs the life of a container", async () => {
  const api = client();
  const { data: created, error } = await api.POST("/v1/containers", {
    params: { header: { prefer: "wait=30" } },
    body: {
      image: "web:1",
      name: "sdk",
      command: ["sh", "-c", "echo from $WHO; exec sleep 1000"],
      env: { WHO: "a client" },
      resources: { memory: 64 * 2 ** 20 },
    },
  });
  expect(error).toBeUndefined();
  expect(created).toMatchObject({ name: "sdk", status: "running" });
  const path = { id: "sdk" };
  const { data: result } = await api.POST("/v1/containers/{id}/exec", {
    params: { path },
    body: { command: ["cat", "/proc/1/cmdline"] },
  });
  expect(result).toMatchObject({ exitCode: 0, stdout: "sleep\u00001000\u0000" });
  const logs = await api.GET("/v1/containers/{id}/logs", { params: { path }, parseAs: "text" });
  expect(logs.data).toContain("from a client");
  const { data: killed } = await api.POST("/v1/containers/{id}/kill", {
    params: { path },
    body: { signal: "SIGKILL" },
  });
  expect(killed?.id).toBe(created?.id);
  const { data: ended } = await api.POST("/v1/containers/{id}/wait", {
    params: { path, query: { timeoutSeconds: 30 } },
  });
  expect(ended).toMatchObject({ status: "exited", exitCode: 137 });
  const removed = await api.DELETE("/v1/containers/{id}", { params: { path, header: { prefer: "wait=30" } } });
  expect(removed.response.status).toBe(204);
  const { error: gone } = await api.GET("/v1/containers/{id}", { params: { path } });
  expect(gone).toMatchObject({ code: "not_found", status: 404 });
});

test("git push makes a URL that answers, by git in the hands of the API's own user", async () => {
  const git = await GitClient.create();
  try {
    const dockerfile = 'FROM busybox:1.36\nCOPY page /www/index.html\nEXPOSE 80\nCMD ["httpd", "-f", "-h", "/www"]\n';
    await git.commit({ Dockerfile: dockerfile, page: "pushed\n" });
    const address = `${berth.url.replace("http://", `http://git:${berth.token}@`)}/git/default/pushed.git`;
    const pushed = await git.git("push", address, "main");
    expect(pushed.exitCode, pushed.stderr).toBe(0);
    expect(pushed.stderr).toMatch(/ is at http:/);
    const [, url = ""] = / is at (http:\S+)/.exec(pushed.stderr) ?? [];
    expect(await page(url), pushed.stderr).toBe("pushed\n");
    const repositories = join(berth.config.dataDir, "git");
    const owners = readdirSync(repositories, { recursive: true, encoding: "utf8" }).flatMap((path) => {
      // The note of the push goes meanwhile.
      const found = statSync(join(repositories, path), { throwIfNoEntry: false });
      return found === undefined ? [] : [found.uid];
    });
    expect(new Set(owners)).toEqual(new Set([statSync(join(berth.config.dataDir, "blobs")).uid]));
    await client().DELETE("/v1/sources/{id}", { params: { path: { id: "pushed" } } });
    const query = { force: true };
    const removed = { path: { id: "pushed" }, query, header: { prefer: "wait=30" } };
    expect((await client().DELETE("/v1/containers/{id}", { params: removed })).response.status).toBe(204);
  } finally {
    git.remove();
  }
});

test("Ctrl-C leaves the containers serving; the next start adopts them and does not repeat the example", async () => {
  const list = async () => {
    const { data } = await client().GET("/v1/containers");
    return data?.items.map(({ name, status, startedAt }) => ({ name, status, startedAt }));
  };
  const before = await list();
  expect(await run.stop("SIGINT")).toBe(0);
  for (const url of urls) expect(await page(url)).toContain("Hello from Berth");
  run = berth.start();
  await run.until(/^Ready/m);
  expect(await list()).toEqual(before);
  for (const url of urls) expect(await page(url)).toContain("Hello from Berth");
  expect(run.text).not.toContain("answers on");
});

test("down ends the containers, and the next start brings back what their restart policy says", async () => {
  expect((await berth.down()).child.exitCode).toBe(0);
  for (const url of urls) await expect(page(url)).rejects.toThrow();
  run = berth.start();
  await run.until(/^Ready/m);
  // Until the worker has looked at them, their rows say what was last seen: that they run.
  for (const url of urls) {
    await expect.poll(() => page(url).catch(String), { timeout: 60_000 }).toContain("Hello from Berth");
  }
  for (const name of ["web-1", "web-2"]) {
    const { data } = await client().POST("/v1/containers/{id}/wait", {
      params: { path: { id: name }, query: { condition: "running", timeoutSeconds: 60 } },
    });
    expect(data).toMatchObject({ status: "running" });
  }
});
