import { once } from "node:events";
import { createServer as createHttpServer, get as httpGet } from "node:http";
import { get as tlsGet } from "node:https";
import { connect, createServer, type Server } from "node:net";
import { getRequestListener } from "@hono/node-server";
import { Hono } from "hono";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { listenAgent } from "../../src/agent/listener.ts";
import { keyedClient } from "../../src/core/keyed-tls.ts";
import { agentKey, hostKey } from "../../src/core/keys.ts";
import { readAll } from "../../src/routes/agents.ts";
import { createApi, type TestApi } from "../support/api.ts";
import { freePort } from "../support/ownership.ts";

let api: TestApi;
const open: Server[] = [];
const secret = "what the container wrote";
const path = "/containers/ctr_1/logs?follow=false";

beforeAll(async () => {
  api = await createApi(inject("postgresSocketDir"));
});
afterAll(async () => {
  await api.close();
  for (const server of open) server.close();
});

const keyOf = (hostId: string) => agentKey(hostKey(api.services.secretKey, hostId));

/** A host with an agent that listens for other machines, under this host's key or another's. */
async function agentOf(keyHost?: string): Promise<{ id: string; port: number }> {
  const port = freePort();
  const id = await api.host({ agentUrl: `tls://127.0.0.1:${String(port)}` });
  const app = new Hono();
  app.get("/containers/:id/logs", (c) => c.text(secret));
  const key = keyOf(keyHost ?? id);
  const load = () => Promise.resolve(getRequestListener(app.fetch));
  open.push(await listenAgent(load, { host: "127.0.0.1", port }, { id: keyHost ?? id, key, blobsDir: "/nowhere" }));
  return { id, port };
}

const ask = async (hostId: string) =>
  readAll(await api.services.agents.ask(hostId, { method: "GET", path, signal: new AbortController().signal }), 1_000);

/** Passes bytes on to a port and keeps them. */
async function wiretap(to: number): Promise<{ port: number; heard: () => string }> {
  const chunks: Buffer[] = [];
  const server = createServer((client) => {
    const upstream = connect(to, "127.0.0.1");
    for (const [from, into] of [
      [client, upstream],
      [upstream, client],
    ] as const) {
      from.on("data", (chunk: Buffer) => {
        chunks.push(chunk);
        into.write(chunk);
      });
      from.on("close", () => into.destroy());
      from.on("error", () => into.destroy());
    }
  }).listen(0, "127.0.0.1");
  open.push(server);
  await once(server, "listening");
  const address = server.address();
  if (address === null || typeof address === "string") throw new Error("no port");
  return { port: address.port, heard: () => Buffer.concat(chunks).toString("latin1") };
}

describe("an agent on another machine", () => {
  test("answers the API, again and again, over one connection", async () => {
    const { id } = await agentOf();
    expect(await ask(id)).toBe(secret);
    expect(await Promise.all([ask(id), ask(id), ask(id)])).toEqual([secret, secret, secret]);
  });

  test("is not believed with another host's key, whatever its row says", async () => {
    const other = await agentOf();
    const { id } = await agentOf(other.id);
    await expect(ask(id)).rejects.toMatchObject({ code: "host_unavailable" });
    await api.database.owner`update hosts set agent_url = ${`tls://127.0.0.1:${String(other.port)}`} where id = ${id}`;
    await expect(ask(id)).rejects.toMatchObject({ code: "host_unavailable" });
    expect(await ask(other.id)).toBe(secret);
  });

  test("takes no connection of who has not its key: none, a made-up one, or another host's", async () => {
    const { id, port } = await agentOf();
    const at = { host: "127.0.0.1", port, path };
    const made = Buffer.alloc(32, 7).toString("base64url");
    const clients = {
      "plain http": () => httpGet(at),
      "tls without a key": () => tlsGet({ ...at, rejectUnauthorized: false }),
      "a made-up key": () => tlsGet({ ...at, ...keyedClient(id, made) }),
      "another host's key": () => tlsGet({ ...at, ...keyedClient(id, keyOf("hst_other")) }),
      "the host's key, which is not its agent's": () =>
        tlsGet({ ...at, ...keyedClient(id, hostKey(api.services.secretKey, id)) }),
      "another identity": () => tlsGet({ ...at, ...keyedClient("hst_other", keyOf(id)) }),
    };
    for (const [who, start] of Object.entries(clients)) {
      const ended = await new Promise<string>((resolve) => {
        start()
          .on("error", () => resolve("refused"))
          .on("response", (response) => {
            response.resume();
            resolve(String(response.statusCode));
          });
      });
      expect([who, ended]).toEqual([who, "refused"]);
    }
    const right = tlsGet({ ...at, ...keyedClient(id, keyOf(id)) });
    const [response] = (await once(right, "response")) as [{ statusCode: number; resume: () => void }];
    response.resume();
    expect(response.statusCode).toBe(200);
  });

  test("can't be listened to; without TLS it could", async () => {
    const { id, port } = await agentOf();
    const tap = await wiretap(port);
    await api.database.owner`update hosts set agent_url = ${`tls://127.0.0.1:${String(tap.port)}`} where id = ${id}`;
    expect(await ask(id)).toBe(secret);
    for (const text of [secret, "ctr_1", keyOf(id)]) expect(tap.heard()).not.toContain(text);

    const plain = createHttpServer((_, response) => response.end(secret)).listen(0, "127.0.0.1");
    open.push(plain);
    await once(plain, "listening");
    const bare = await wiretap((plain.address() as { port: number }).port);
    const [response] = (await once(httpGet({ host: "127.0.0.1", port: bare.port, path }), "response")) as [
      Parameters<typeof readAll>[0],
    ];
    expect(await readAll(response, 1_000)).toBe(secret);
    for (const text of [secret, "ctr_1"]) expect(bare.heard()).toContain(text);
  });
});
