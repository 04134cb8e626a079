import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { createApi, type Problem, type TestApi, type TestProject } from "../support/api.ts";

let api: TestApi;
let project: TestProject;
let other: TestProject;

beforeAll(async () => {
  api = await createApi(inject("postgresSocketDir"), { uploads: 2 });
  project = await api.project("acme");
  other = await api.project("umbrella");
});
afterAll(() => api.close());

const pull = (of: TestProject) =>
  api.app.request("/v1/images/pull", {
    method: "POST",
    headers: { authorization: `Bearer ${of.tokens.deployer}`, "content-type": "application/json" },
    body: JSON.stringify({ reference: "registry.example/x:1" }),
  });

test("a project has at most 200 jobs open, however many ask at once; others are not held back", async () => {
  const answers = await Promise.all(Array.from({ length: 230 }, () => Promise.resolve(pull(project))));
  const statuses = answers.map(({ status }) => status);
  expect(statuses.filter((status) => status === 202)).toHaveLength(200);
  const refused = answers.filter(({ status }) => status === 409);
  expect(refused).toHaveLength(30);
  expect(await refused[0]?.json()).toMatchObject({ code: "quota_exceeded", status: 409 });
  expect((await pull(other)).status).toBe(202);
  await api.database.owner`update jobs set status = 'running' where project_id = ${project.id}`;
  expect((await pull(project)).status).toBe(409);
  await api.database.owner`
    update jobs set status = 'succeeded' where id = (select id from jobs where project_id = ${project.id} limit 1)`;
  expect((await pull(project)).status).toBe(202);
  await api.database.owner`delete from jobs`;
});

/** An upload that goes on until it is told to end. */
function upload(of: TestProject) {
  const end = Promise.withResolvers<void>();
  let pulled = 0;
  const body = new ReadableStream<Uint8Array>({
    async pull(controller) {
      if (pulled++ > 0) {
        await end.promise;
        controller.close();
      } else controller.enqueue(new Uint8Array(1024));
    },
  });
  const answer = Promise.resolve(
    api.app.request("/v1/builds", {
      method: "POST",
      headers: { authorization: `Bearer ${of.tokens.deployer}`, "content-type": "application/x-tar" },
      body,
      duplex: "half",
    }),
  );
  return { answer, end: () => end.resolve(), reading: () => pulled > 1 };
}

test("uploads of a project that are one too many are told to come back, and the others go on", async () => {
  const running = [upload(project), upload(project)];
  await expect.poll(() => running.every((each) => each.reading())).toBe(true);
  const late = upload(project);
  const refused = await late.answer;
  expect(refused.status).toBe(429);
  expect(refused.headers.get("retry-after")).toBe("1");
  expect((await refused.json()) as Problem).toMatchObject({ code: "too_many_requests" });
  const others = upload(other);
  others.end();
  expect((await others.answer).status).toBe(202);
  running[0]?.end();
  expect((await running[0]?.answer)?.status).toBe(202);
  const next = upload(project);
  next.end();
  expect((await next.answer).status).toBe(202);
  running[1]?.end();
  expect((await running[1]?.answer)?.status).toBe(202);
});
