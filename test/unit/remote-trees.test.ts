import { once } from "node:events";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type RemoteMeans, RemoteTrees } from "../../src/engine/build/remote-trees.ts";
import { HttpClient } from "../../src/image/http.ts";
import { OutboundPolicy } from "../../src/image/outbound.ts";

const scratch = mkdtempSync(join(tmpdir(), "berth-remote-trees-test-"));
const policy = new OutboundPolicy(["127.0.0.1/32"]);
const http = new HttpClient(policy, 5_000);
let open = 0;
let mostOpen = 0;
const server = createServer((_request, response) => {
  mostOpen = Math.max(mostOpen, ++open);
  // Answered when all that come at once have come.
  setImmediate(() => response.end("ten bytes.", () => open--));
});

beforeAll(async () => {
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
});
afterAll(() => {
  http.close();
  server.closeAllConnections();
  server.close();
  rmSync(scratch, { recursive: true, force: true });
});

/** Only files are fetched here, which needs no sandbox. */
const files = { find: () => Promise.resolve(null), keep: () => Promise.resolve() };
const means = { http, outbound: policy, scratch, files } as unknown as RemoteMeans;
const signal = new AbortController().signal;
const file = (name: string) => ({
  kind: "http" as const,
  name,
  unpack: false,
  url: `http://127.0.0.1:${String((server.address() as AddressInfo).port)}/${name}`,
});

test("a build fetches few sources at once, and each once", async () => {
  const trees = new RemoteTrees(means, { atOnce: 3, bytes: 2 ** 20 });
  const names = Array.from({ length: 12 }, (_, i) => `f${String(i % 10)}`);
  await Promise.all(names.map((name) => trees.tree(file(name), null, signal)));
  expect(mostOpen).toBeGreaterThan(0);
  expect(mostOpen).toBeLessThanOrEqual(3);
  await trees.close();
});

test("a build that has fetched too much fetches nothing more", async () => {
  const trees = new RemoteTrees(means, { atOnce: 1, bytes: 15 });
  const tree = (name: string) => trees.tree(file(name), null, signal);
  await tree("one");
  await tree("two");
  await expect(tree("three")).rejects.toMatchObject({ code: "invalid_context" });
  // What is here already is no fetch.
  await tree("one");
  await trees.close();
  expect(readdirSync(scratch)).toEqual([]);
});
