import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { gzipSync } from "node:zlib";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { writeTar } from "../../src/image/tar-write.ts";
import { DrivenHost } from "../support/driven-host.ts";
import { collect, entry } from "../support/image.ts";

// What a build takes from elsewhere, asked of the API and done by a real worker.

interface Build {
  id: string;
  status: string;
  error: { code: string; line?: number } | null;
  source: { digest: string | null; sizeBytes: number | null };
  warnings: { check: string; message: string; line: number }[];
}

let host: DrivenHost;
const files = new Map<string, Buffer>();
/** Statuses of the requests for /file. */
const answers: number[] = [];
const server = createServer((request, response) => {
  const content = files.get(request.url ?? "");
  if (content === undefined) return response.writeHead(404).end();
  const etag = `"${content.toString("hex").slice(0, 20)}"`;
  const same = request.headers["if-none-match"] === etag;
  if (request.url === "/file") answers.push(same ? 304 : 200);
  return response.writeHead(same ? 304 : 200, { etag }).end(same ? undefined : content);
});
const at = (path: string) => `http://127.0.0.1:${String((server.address() as AddressInfo).port)}${path}`;

beforeAll(async () => {
  await new Promise<void>((listening) => server.listen(0, "127.0.0.1", listening));
  const dockerfile = ["FROM scratch AS Web", "COPY --from=data x /x", `ADD ${at("/file")} /file`, "ENV a=$nope"];
  const context = await collect(writeTar([entry("Dockerfile", { content: `${dockerfile.join("\n")}\n` })]));
  files.set("/context.tar.gz", gzipSync(context));
  files.set("/data.tar", await collect(writeTar([entry("x", { content: "x" })])));
  files.set("/file", Buffer.from("file"));
  host = await DrivenHost.create(inject("postgresSocketDir"), { BERTH_OUTBOUND_ALLOW: "127.0.0.0/8" });
  await host.start();
});
afterAll(async () => {
  await host.destroy();
  server.closeAllConnections();
  server.close();
});

async function build(body: object): Promise<Build> {
  const { body: made } = await host.ask<Build>("POST", "/v1/builds", body);
  const get = async () => (await host.ask<Build>("GET", `/v1/builds/${made.id}`)).body;
  await expect.poll(async () => (await get()).status, { timeout: 30_000 }).toMatch(/^(?:succeeded|failed)$/);
  return get();
}

test("a tar, a named context and a file behind URLs make an image; the build shows what it was warned of", async () => {
  const contexts = { data: at("/data.tar") };
  const made = await build({ source: { tar: { url: at("/context.tar.gz") } }, contexts, tags: ["web:1"] });
  expect(made).toMatchObject({ status: "succeeded", error: null });
  expect(made.source).toMatchObject({ sizeBytes: files.get("/context.tar.gz")?.length });
  expect(made.source.digest).toMatch(/^sha256:/);
  expect(made.warnings.map(({ check, line }) => `${String(line)} ${check}`)).toEqual([
    "1 StageNameCasing",
    "4 UndefinedVar",
  ]);
});

test("what can't be downloaded fails the build with its line", async () => {
  const contexts = { data: at("/missing.tar") };
  const made = await build({ source: { tar: { url: at("/context.tar.gz") } }, contexts });
  expect(made).toMatchObject({ status: "failed", error: { code: "invalid_context", line: 2 } });
  const none = await build({ source: { tar: { url: at("/nothing.tar.gz") } } });
  expect(none).toMatchObject({ status: "failed", error: { code: "invalid_context" }, source: { digest: null } });
});

test("what was added from a URL is remembered for the project, until its cache is emptied", async () => {
  const source = { tar: { url: at("/context.tar.gz") } };
  const contexts = { data: at("/data.tar") };
  await build({ source, contexts });
  answers.length = 0;
  await build({ source, contexts });
  expect(answers).toEqual([304]);
  const { body: pruned } = await host.ask<{ steps: { count: number } }>("POST", "/v1/builds/prune");
  // COPY and ADD: a file is no step.
  expect(pruned.steps.count).toBe(2);
  await build({ source, contexts });
  expect(answers).toEqual([304, 200]);
});
