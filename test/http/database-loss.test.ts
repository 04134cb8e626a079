import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { ask, createApi, type Problem, type TestApi, type TestProject } from "../support/api.ts";

let api: TestApi;
let project: TestProject;

beforeAll(async () => {
  api = await createApi(inject("postgresSocketDir"));
  project = await api.project("acme");
  await api.host();
});
afterAll(() => api.close());

const get = (path: string) => ask<Problem>(api.app, project.tokens.viewer, "GET", path);
const terminate = () => api.database.owner`
  select pg_terminate_backend(pid) from pg_stat_activity where datname = ${api.database.name} and usename = 'berth_api'`;

test("when every connection fails at once, requests are 503 or answered, and all recovers by itself", async () => {
  expect((await get("/v1/containers")).status).toBe(200);
  for (let round = 0; round < 3; round++) {
    const [, ...answers] = await Promise.all([terminate(), ...Array.from({ length: 20 }, () => get("/v1/containers"))]);
    for (const { status, body, headers } of answers) {
      expect([200, 503]).toContain(status);
      if (status === 503) {
        expect(body.code).toBe("unavailable");
        expect(headers.get("retry-after")).toBe("1");
      }
    }
    await expect.poll(async () => (await get("/v1/containers")).status, { timeout: 10_000 }).toBe(200);
  }
});

test("waiting requests survive it: the listening connection comes back and wakes them", async () => {
  const asked = ask<{ status: string }>(
    api.app,
    project.tokens.deployer,
    "POST",
    "/v1/containers",
    { image: "debian:12", name: "patient" },
    { prefer: "wait=20" },
  );
  await expect.poll(async () => (await get("/v1/containers/patient")).status).toBe(200);
  await terminate();
  const { owner } = api.database;
  await owner`update containers set status = 'running', seen_rev = wanted_rev, run = 1 where name = 'patient'`;
  expect(await asked).toMatchObject({ status: 201, body: { status: "running" } });
  await expect.poll(async () => (await get("/readyz")).status, { timeout: 10_000 }).toBe(200);

  let woken = 0;
  const unsubscribe = api.services.wakeups.subscribe("after-the-loss", () => woken++);
  await expect
    .poll(
      async () => {
        await owner`select pg_notify('berth', 'after-the-loss')`;
        return woken;
      },
      { timeout: 10_000 },
    )
    .toBeGreaterThan(0);
  unsubscribe();
});
