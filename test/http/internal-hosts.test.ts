import type { AddressInfo } from "node:net";
import { pino } from "pino";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { newId } from "../../src/core/ids.ts";
import { hostKey, joinKey, seal } from "../../src/core/keys.ts";
import type { ClaimedJob } from "../../src/db/leases.ts";
import { openByApi } from "../../src/engine/sealed.ts";
import { createInternalApp, type InternalApp } from "../../src/routes/internal/app.ts";
import { authenticateHost } from "../../src/routes/internal/host-auth.ts";
import { addHostAdmission } from "../../src/routes/internal/hosts.ts";
import { maxJsonBytes } from "../../src/routes/json-body.ts";
import { closeServer, listen } from "../../src/routes/listener.ts";
import { ask, createApi, type TestApi, type TestProject } from "../support/api.ts";
import { registration } from "../support/host.ts";

let api: TestApi;
let project: TestProject;
let app: InternalApp;
let secretKey: string;

beforeAll(async () => {
  api = await createApi(inject("postgresSocketDir"));
  project = await api.project("default");
  const { sql } = api.services;
  ({ secretKey } = api.services);
  const authenticate = (bearer: string) => authenticateHost(sql, secretKey, bearer);
  app = createInternalApp({ authenticate, log: pino({ level: "silent" }) });
  addHostAdmission(app, { sql, secretKey });
});
afterAll(() => api.close());

const host = (name: string) => ({ ...registration, name, agentUrl: "tls://198.18.0.2:7072" });

async function post(path: string, bearer: string | null, body: unknown) {
  const response = await app.request(path, {
    method: "POST",
    headers: { "content-type": "application/json", ...(bearer === null ? {} : { authorization: `Bearer ${bearer}` }) },
    body: typeof body === "string" ? body : JSON.stringify(body),
  });
  return { status: response.status, body: (await response.json()) as Record<string, string> };
}

async function joinToken(body: object = {}): Promise<{ id: string; token: string }> {
  return (await ask<{ id: string; token: string }>(api.app, api.operator, "POST", "/v1/join-tokens", body)).body;
}

async function joined(name: string): Promise<{ id: string; key: string }> {
  const { token } = await joinToken();
  const { status, body } = await post("/internal/hosts", token, host(name));
  expect(status).toBe(200);
  return { id: body.id ?? "", key: body.key ?? "" };
}

describe("joining", () => {
  test("a token is made, listed without its secret, used up, and revoked, by the operator alone", async () => {
    const made = await ask<{ token: string; id: string; usesLeft: number }>(
      api.app,
      api.operator,
      "POST",
      "/v1/join-tokens",
      { uses: 2, expiresInSeconds: 60 },
    );
    expect(made).toMatchObject({ status: 201, body: { usesLeft: 2 } });
    const list = () => ask<{ items: object[] }>(api.app, api.operator, "GET", "/v1/join-tokens");
    const [item] = (await list()).body.items;
    expect(Object.keys(item ?? {}).sort()).toEqual(["createdAt", "expiresAt", "id", "usesLeft"]);
    expect((await ask(api.app, project.tokens.admin, "POST", "/v1/join-tokens", {})).status).toBe(403);
    expect((await ask(api.app, api.operator, "DELETE", `/v1/join-tokens/${made.body.id}`)).status).toBe(204);
    expect((await list()).body.items).toEqual([]);
    expect(await post("/internal/hosts", made.body.token, host("late"))).toMatchObject({
      status: 401,
      body: { code: "unauthorized" },
    });
    expect((await ask(api.app, api.operator, "DELETE", `/v1/join-tokens/${newId("joinToken")}`)).status).toBe(404);
  });

  test("gives the host its key, which is no other host's and reveals nothing; the token's answer can be asked again", async () => {
    const one = await joined("one");
    const two = await joined("two");
    expect(one.key).toBe(hostKey(secretKey, one.id));
    expect(one.key).not.toBe(two.key);
    expect(JSON.stringify(api.logged)).not.toContain(one.key);
  });

  test.each([
    ["no credential", () => null],
    ["a token of its own making", () => `${newId("joinToken")}.${"a".repeat(43)}`],
    ["a key of the secret key's that is of no token", () => `${newId("joinToken")}.${hostKey(secretKey, "x")}`],
    [
      "a well-formed token that was never made",
      () => {
        const id = newId("joinToken");
        return `${id}.${joinKey(secretKey, id)}`;
      },
    ],
    ["the operator's token", () => api.operator],
  ])("is refused with %s", async (_, bearer) => {
    expect(await post("/internal/hosts", bearer(), host("refused"))).toMatchObject({ status: 401 });
  });

  test("a host can't join as one that runs on the API's machine, nor with what is no registration", async () => {
    const { token } = await joinToken();
    for (const bad of [
      { ...host("bad"), agentUrl: "unix:/run/berth/x/agent.sock" },
      { ...host("bad"), agentUrl: "tls://user@198.18.0.2:7072" },
      { ...host("bad"), name: "../bad" },
      { ...host("bad"), name: "bad\nname" },
      { ...host("bad"), memory: -1 },
      { ...host("bad"), portFirst: 0 },
      { ...host("bad"), id: "hst_mine" },
      {},
      "{",
    ]) {
      expect(await post("/internal/hosts", token, bad)).toMatchObject({
        status: 400,
        body: { code: "invalid_request" },
      });
    }
    expect(await post("/internal/hosts", token, { ...host("bad"), labels: { a: "x".repeat(300_000) } })).toMatchObject({
      status: 413,
    });
    expect(await post("/internal/hosts", token, host("good"))).toMatchObject({ status: 200 });
  });

  test("two hosts of one name: the second is told what to do, and its token is not used up", async () => {
    await joined("twin");
    const { token } = await joinToken();
    const refused = await post("/internal/hosts", token, host("twin"));
    expect(refused).toMatchObject({ status: 409, body: { code: "name_taken" } });
    expect(refused.body.detail).toContain("BERTH_HOST_NAME");
    expect(await post("/internal/hosts", token, host("no-twin"))).toMatchObject({ status: 200 });
  });
});

describe("secrets of jobs", () => {
  const queue = async (hostId: string) => {
    const id = newId("job");
    await api.database.owner`
      insert into jobs (id, project_id, kind, payload, status, host_id, epoch, attempt, lease_until)
      values (${id}, ${project.id}, 'pull', '{}', 'running', ${hostId}, 4, 1, now())`;
    return id;
  };

  test("are opened for the host that holds the job's lease, and for no other, no other job and no other purpose", async () => {
    const [one, two] = [await joined("opener"), await joined("other")];
    const id = await queue(one.id);
    const bearer = `${one.id}.${one.key}`;
    const open = (job: string, as: string, body: object) => post(`/internal/jobs/${job}/open`, as, body);
    const sealed = seal(secretKey, `pull:${id}`, "the password");
    expect(await open(id, bearer, { epoch: 4, sealed })).toEqual({ status: 200, body: { text: "the password" } });

    expect(await open(id, bearer, { epoch: 3, sealed })).toMatchObject({ status: 404 });
    expect(await open(id, `${two.id}.${two.key}`, { epoch: 4, sealed })).toMatchObject({ status: 404 });
    expect(await open(id, `${two.id}.${one.key}`, { epoch: 4, sealed })).toMatchObject({ status: 401 });
    expect(await open(id, `${one.id}.${"a".repeat(43)}`, { epoch: 4, sealed })).toMatchObject({ status: 401 });
    expect(await open(await queue(one.id), bearer, { epoch: 4, sealed })).toMatchObject({ status: 500 });
    for (const purpose of ["idempotency", `push:${id}`, "pull:"]) {
      const other = seal(secretKey, purpose, "not for hosts");
      const answer = await open(id, bearer, { epoch: 4, sealed: other });
      expect(answer.status).toBe(500);
      expect(JSON.stringify(answer.body)).not.toContain("not for hosts");
    }
    await api.database.owner`update jobs set status = 'succeeded' where id = ${id}`;
    expect(await open(id, bearer, { epoch: 4, sealed })).toMatchObject({ status: 404 });
  });

  test("may be as many as a build's request has room for, and cost the most when they are written as JSON", async () => {
    const one = await joined("roomy");
    const id = await queue(one.id);
    const server = await listen(app, { host: "127.0.0.1", port: 0 });
    try {
      const url = `http://127.0.0.1:${String((server.address() as AddressInfo).port)}`;
      const openSealed = openByApi({ url, ca: null, credential: `${one.id}.${one.key}` });
      const text = "\\".repeat(maxJsonBytes);
      const job = { id, epoch: 4 } as ClaimedJob;
      expect((await openSealed(job, seal(secretKey, `pull:${id}`, text))) === text).toBe(true);
      await expect(openSealed(job, "a".repeat(2 * maxJsonBytes))).rejects.toMatchObject({ code: "body_too_large" });
    } finally {
      await closeServer(server);
    }
  });

  test("a forgotten host's key opens nothing", async () => {
    const one = await joined("forgotten");
    const id = await queue(one.id);
    const sealed = seal(secretKey, `pull:${id}`, "the password");
    const open = () => post(`/internal/jobs/${id}/open`, `${one.id}.${one.key}`, { epoch: 4, sealed });
    expect((await open()).status).toBe(200);
    expect((await ask(api.app, api.operator, "DELETE", `/v1/hosts/${one.id}`)).status).toBe(204);
    expect((await open()).status).toBe(401);
    const blob = await app.request(`/internal/blobs/sha256:${"0".repeat(64)}`, {
      headers: { authorization: `Bearer ${one.id}.${one.key}` },
    });
    expect(blob.status).toBe(401);
  });
});
