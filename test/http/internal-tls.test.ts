import type { Server } from "node:http";
import type { AddressInfo } from "node:net";
import { pino } from "pino";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import type { ApiAccess } from "../../src/core/api-access.ts";
import { newId } from "../../src/core/ids.ts";
import { keyedServer } from "../../src/core/keyed-tls.ts";
import { hostKey, identityKey } from "../../src/core/keys.ts";
import { postInternal } from "../../src/engine/internal-api.ts";
import { createInternalApp } from "../../src/routes/internal/app.ts";
import { authenticateHost } from "../../src/routes/internal/host-auth.ts";
import { addHostAdmission } from "../../src/routes/internal/hosts.ts";
import { closeServer, listen } from "../../src/routes/listener.ts";
import { ask, createApi, type TestApi } from "../support/api.ts";
import { registration } from "../support/host.ts";

// The internal listener as other machines reach it, without a certificate.
let api: TestApi;
let server: Server;
let url: string;

beforeAll(async () => {
  api = await createApi(inject("postgresSocketDir"));
  await api.project("default");
  const { sql, secretKey } = api.services;
  const authenticate = (bearer: string) => authenticateHost(sql, secretKey, bearer);
  const app = createInternalApp({ authenticate, log: pino({ level: "silent" }) });
  addHostAdmission(app, { sql, secretKey });
  const tls = keyedServer((identity) => identityKey(secretKey, identity));
  server = await listen(app, { host: "127.0.0.1", port: 0 }, { tls });
  url = `tls://127.0.0.1:${String((server.address() as AddressInfo).port)}`;
});
afterAll(async () => {
  await closeServer(server, 100);
  await api.close();
});

const access = (credential: string, more: Partial<ApiAccess> = {}): ApiAccess => ({
  url,
  ca: null,
  credential,
  ...more,
});
const host = (name: string) => ({ ...registration, name, agentUrl: "tls://198.18.0.2:7072" });
const token = async () =>
  (await ask<{ token: string }>(api.app, api.operator, "POST", "/v1/join-tokens", {})).body.token;

test("a join token opens the connection too, and the host's key from then on", async () => {
  const joined = (await postInternal(access(await token()), "/internal/hosts", host("one"))) as {
    id: string;
    key: string;
  };
  const credential = `${joined.id}.${joined.key}`;
  await expect(
    postInternal(access(credential), `/internal/jobs/${newId("job")}/open`, { epoch: 1, sealed: "x" }),
  ).rejects.toMatchObject({ code: "not_found" });
  await ask(api.app, api.operator, "DELETE", `/v1/hosts/${joined.id}`);
  await expect(
    postInternal(access(credential), `/internal/jobs/${newId("job")}/open`, { epoch: 1, sealed: "x" }),
  ).rejects.toMatchObject({ code: "unauthorized" });
});

test("who has no key of this Berth is not let in, and is told so in words", async () => {
  const id = newId("host");
  for (const credential of [
    "",
    "not even a credential",
    `${newId("joinToken")}.${"a".repeat(43)}`,
    `${id}.${hostKey("the secret key of another Berth, long enough", id)}`,
    `${newId("token")}.${"a".repeat(43)}`,
  ]) {
    await expect(postInternal(access(credential), "/internal/hosts", host("no"))).rejects.toMatchObject({
      code: "unauthorized",
      message: expect.stringContaining("does not let this host in") as string,
    });
  }
});

test("an address where nobody listens, and a listener without keys, are told apart from that", async () => {
  const good = await token();
  await expect(
    postInternal(access(good, { url: "tls://127.0.0.1:1" }), "/internal/hosts", host("no")),
  ).rejects.toMatchObject({ code: "unavailable", message: expect.stringContaining("ECONNREFUSED") as string });
  const plain = url.replace("tls:", "http:");
  await expect(postInternal(access(good, { url: plain }), "/internal/hosts", host("no"))).rejects.toMatchObject({
    code: "unavailable",
  });
});
