import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { ask, createApi, type Problem, type TestApi, type TestProject } from "../support/api.ts";

let api: TestApi;
let project: TestProject;

beforeAll(async () => {
  api = await createApi(inject("postgresSocketDir"), { heldRequests: 1 });
  project = await api.project("acme");
  await api.host();
});
afterAll(() => api.close());

const call = (method: string, path: string, body?: unknown, headers?: Record<string, string>) =>
  ask<Problem & { id: string; name: string }>(api.app, project.tokens.deployer, method, path, body, headers);

test("with too many waiting requests, what was asked is done and answered without a wait", async () => {
  const first = (await call("POST", "/v1/containers", { image: "debian:12", name: "first" })).body;
  const waiting = call("POST", `/v1/containers/${first.id}/wait?timeoutSeconds=20`);
  await expect.poll(() => api.services.streams.size).toBe(1);

  const second = await call("POST", "/v1/containers", { image: "debian:12", name: "second" }, { prefer: "wait=20" });
  expect(second).toMatchObject({ status: 202, body: { name: "second" } });
  expect(second.headers.get("preference-applied")).toBeNull();
  expect(await call("POST", "/v1/containers/second/stop", undefined, { prefer: "wait=20" })).toMatchObject({
    status: 202,
  });
  // Who asks for nothing but to wait is told.
  expect(await call("POST", "/v1/containers/second/wait")).toMatchObject({ body: { code: "too_many_requests" } });

  const { owner } = api.database;
  await owner`update containers set status = 'exited', seen_rev = wanted_rev, run = wanted_run where id = ${first.id}`;
  await owner`select pg_notify('berth', ${first.id})`;
  expect(await waiting).toMatchObject({ status: 200 });
});
