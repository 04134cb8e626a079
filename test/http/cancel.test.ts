import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { ask, createApi, type TestApi, type TestProject } from "../support/api.ts";

interface Job {
  id: string;
  status: string;
}

let api: TestApi;
let project: TestProject;

beforeAll(async () => {
  api = await createApi(inject("postgresSocketDir"));
  project = await api.project("acme");
});
afterAll(() => api.close());

const post = (path: string, body?: unknown) => ask<Job>(api.app, project.tokens.deployer, "POST", path, body);
const told = async (id: string) => {
  const rows = await api.database.owner<{ type: string }[]>`
    select type from events where subject_id = ${id} order by events.id`;
  return rows.map((row) => row.type);
};

test("a queued job that is cancelled tells of its end once, and forgets what it would have logged in with", async () => {
  const auth = { username: "ada", password: "a secret" };
  const { id } = (await post("/v1/images/pull", { reference: "registry.example/x:1", auth })).body;
  const payload = async () =>
    (await api.database.owner<{ payload: object }[]>`select payload from jobs where id = ${id}`)[0]?.payload;
  expect(await payload()).toHaveProperty("auth");
  expect(await post(`/v1/jobs/${id}/cancel`)).toMatchObject({ status: 200, body: { status: "cancelled" } });
  expect(await post(`/v1/jobs/${id}/cancel`)).toMatchObject({ status: 200, body: { status: "cancelled" } });
  expect(await told(id)).toEqual(["pull.queued", "job.cancel_requested", "pull.cancelled"]);
  expect(await payload()).toEqual({ reference: "registry.example/x:1" });
});

test("of one that runs, the worker that has it tells", async () => {
  const { id } = (await post("/v1/images/pull", { reference: "registry.example/x:1" })).body;
  await api.database.owner`update jobs set status = 'running' where id = ${id}`;
  expect(await post(`/v1/jobs/${id}/cancel`)).toMatchObject({ status: 202, body: { status: "running" } });
  expect(await told(id)).toEqual(["pull.queued", "job.cancel_requested"]);
});
