import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { createServer, type Server, type ServerResponse } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { ask, createApi, type TestApi } from "../support/api.ts";

let api: TestApi;
let agent: Server;
let directory: string;
/** Prunes that the host has not answered. */
const open: ServerResponse[] = [];

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), "berth-test-prune-"));
  const socket = join(directory, "agent.sock");
  agent = createServer((_, response) => {
    open.push(response);
    agent.emit("asked");
  });
  await new Promise<void>((resolve) => agent.listen(socket, resolve));
  api = await createApi(inject("postgresSocketDir"));
  await api.host({ agentUrl: `unix:${socket}` });
});
afterAll(async () => {
  await api.close();
  agent.closeAllConnections();
  await new Promise((resolve) => agent.close(resolve));
  await rm(directory, { recursive: true });
});

const asked = async (count: number) => {
  while (open.length < count) await once(agent, "asked");
};
const answer = () => {
  for (const response of open.splice(0)) response.end('{"bytes":7}');
};

test("hosts that take their time with many prunes hold up nobody else", async () => {
  const { tokens } = await api.project("many");
  // More than there are connections to the database.
  const prunes = Array.from({ length: 12 }, () => ask(api.app, tokens.deployer, "POST", "/v1/builds/prune"));
  await asked(prunes.length);
  expect((await ask(api.app, tokens.viewer, "GET", "/v1/builds")).status).toBe(200);
  answer();
  for (const prune of prunes) expect(await prune).toMatchObject({ status: 200, body: { bytes: 7, missingHosts: [] } });
});

test("the same key empties the hosts' caches once", async () => {
  const { tokens } = await api.project("once");
  const prune = () =>
    api.app.request("/v1/builds/prune", {
      method: "POST",
      headers: { authorization: `Bearer ${tokens.deployer}`, "idempotency-key": "prune-1" },
    });
  const first = prune();
  await asked(1);
  answer();
  const text = await (await first).text();
  expect(JSON.parse(text)).toMatchObject({ caches: { bytes: 7 } });
  const again = await prune();
  expect([again.headers.get("idempotency-replayed"), JSON.parse(await again.text())]).toEqual([
    "true",
    JSON.parse(text),
  ]);
  expect(open).toEqual([]);
});
