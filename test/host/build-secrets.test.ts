import { execFileSync } from "node:child_process";
import { readdirSync } from "node:fs";
import { afterAll, beforeAll, expect, inject, test, vi } from "vitest";
import { writeTar } from "../../src/image/tar-write.ts";
import type { TestProject } from "../support/api.ts";
import { DrivenHost } from "../support/driven-host.ts";
import { collect, entry } from "../support/image.ts";

interface Build {
  status: string;
  error: { code: string; detail: string } | null;
}
interface Pruned {
  bytes: number;
  steps: { count: number; bytes: number };
  caches: { bytes: number };
  missingHosts: string[];
}

let host: DrivenHost;
let other: TestProject;

beforeAll(async () => {
  host = await DrivenHost.create(inject("postgresSocketDir"));
  await host.start();
  other = await host.api.project("other");
  await Promise.all([host.buildBusybox("base"), host.buildBusybox("base", other)]);
});
afterAll(() => host.destroy());

const header = (secrets: object) => Buffer.from(JSON.stringify(secrets)).toString("base64");

async function build(lines: string[], headers: Record<string, string> = {}, project = host.project) {
  const tar = await collect(writeTar([entry("Dockerfile", { content: `FROM base\n${lines.join("\n")}\n` })]));
  const response = await host.api.app.request("/v1/builds?noCache=true", {
    method: "POST",
    headers: {
      authorization: `Bearer ${project.tokens.admin}`,
      "content-type": "application/x-tar",
      prefer: "wait=60",
      ...headers,
    },
    body: tar,
  });
  return { status: response.status, text: await response.text() };
}

test("a secret comes with a build, and no row has it, while it runs or after", async () => {
  const token = "hunter2-hunter2-hunter2";
  const read = [
    'RUN --mount=type=secret,id=token,required test "$(cat /run/secrets/token)" = ' + "hunter2-".repeat(2) + "hunter2",
  ];
  // As an expectation it stands in the Dockerfile; what the rows may not have is another one's value.
  const hidden = ["RUN --mount=type=secret,id=token,required test -s /run/secrets/token"];
  expect(
    (JSON.parse((await build(read, { "berth-build-secrets": header({ token }) })).text) as Build).error,
  ).toBeNull();
  const value = "kept-nowhere-at-all";
  const kept = await build(hidden, { "berth-build-secrets": header({ token: value }) });
  expect((JSON.parse(kept.text) as Build).status).toBe("succeeded");
  expect(kept.text).not.toContain(value);
  const rows = await host.api.database.owner`
    select (select json_agg(j) from jobs j)::text || (select json_agg(b) from builds b)::text ||
      (select json_agg(l) from build_logs l)::text || (select json_agg(e) from events e)::text as all`;
  expect(String(rows[0]?.all)).not.toContain(value);
  const [left] = await host.api.database.owner`select count(*)::int as n from jobs where payload ? 'secrets'`;
  expect(left?.n).toBe(0);
  const missing = JSON.parse((await build(hidden)).text) as Build;
  expect(missing.error).toMatchObject({ code: "secret_missing" });
});

test("secrets that can't be read are refused without being shown", async () => {
  for (const wrong of ["bm90IGpzb24=", header({ "": "hunter2" }), header({ a: 1 })]) {
    const refused = await build(["RUN true"], { "berth-build-secrets": wrong });
    expect(refused.status).toBe(400);
    expect(refused.text).toContain("header/Berth-Build-Secrets");
    expect(refused.text).not.toContain("hunter2");
  }
});

test("prune forgets a project's steps and caches, and says how many bytes that was", async () => {
  const fill = ["RUN --mount=type=cache,target=/c head -c 3000000 /dev/urandom > /c/random", "RUN echo step > /step"];
  const see = ["RUN --mount=type=cache,target=/c test -e /c/random"];
  for (const project of [host.project, other]) expect((await build(fill, {}, project)).status).toBe(201);
  const caches = () =>
    readdirSync(`${host.config.dataDir}/worker/caches`, { recursive: true }).filter((name) =>
      String(name).endsWith(".img"),
    );
  expect(caches()).toHaveLength(2);
  const pruned = await host.ask<Pruned>("POST", "/v1/builds/prune");
  expect(pruned.status).toBe(200);
  expect(pruned.body.caches.bytes).toBeGreaterThan(3_000_000);
  expect(pruned.body.caches.bytes).toBeLessThan(6_000_000);
  expect(pruned.body.steps.count).toBeGreaterThan(1);
  expect(pruned.body.bytes).toBe(pruned.body.steps.bytes + pruned.body.caches.bytes);
  expect(pruned.body.missingHosts).toEqual([]);
  expect(caches()).toHaveLength(1);
  expect((await host.ask<Pruned>("POST", "/v1/builds/prune")).body).toMatchObject({ bytes: 0, steps: { count: 0 } });
  // The other project has its own still; here it begins empty.
  expect((JSON.parse((await build(see, {}, other)).text) as Build).error).toBeNull();
  expect((JSON.parse((await build(see)).text) as Build).error).toMatchObject({ code: "step_failed" });
});

test("a worker that is killed while mounts are in use leaves a cache for its successor, and nothing else", async () => {
  const write = "RUN --mount=type=cache,id=kill,target=/c --mount=type=bind,target=/b";
  const tar = await collect(
    writeTar([entry("Dockerfile", { content: `FROM base\n${write} echo 1 > /c/one; echo begun; sleep 60\n` })]),
  );
  const response = await host.api.app.request("/v1/builds", {
    method: "POST",
    headers: { authorization: `Bearer ${host.project.tokens.admin}`, "content-type": "application/x-tar" },
    body: tar,
  });
  const { id } = (await response.json()) as { id: string };
  const rows = () => host.api.database.owner`select 1 from build_logs where build_id = ${id} and text = 'begun'`;
  await vi.waitFor(async () => expect(await rows()).toHaveLength(1), { timeout: 20_000, interval: 50 });
  // The context, and what the image lacks to mount over.
  expect(scratchMounts()).toHaveLength(2);
  await host.stop("SIGKILL");
  await host.ask("POST", `/v1/builds/${id}/cancel`);
  await host.start();
  expect(scratchMounts()).toEqual([]);
  const after = JSON.parse((await build([`${write} cat /c/one && echo 2 > /c/two`])).text) as Build;
  expect(after.error).toBeNull();
});

/** Layers that a step alone has, as they are mounted in the worker's namespace. */
function scratchMounts(): string[] {
  const inside = `--mount=${host.config.runDir}/mntns`;
  const table = execFileSync("nsenter", [inside, "cat", "/proc/self/mountinfo"], { encoding: "utf8" });
  return table
    .split("\n")
    .filter((line) => new RegExp(`${host.config.runDir}/layers/[0-9a-f]{8}-[0-9a-f-]{27} `).test(line));
}
