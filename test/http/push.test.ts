import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { open } from "../../src/core/keys.ts";
import { ask, createApi, type Problem, type TestApi, type TestProject } from "../support/api.ts";

let api: TestApi;
let project: TestProject;
const digest = (letter: string) => `sha256:${letter.repeat(64)}`;
const call = <T = Problem>(method: string, path: string, body?: unknown) =>
  ask<T>(api.app, project.tokens.deployer, method, path, body);

beforeAll(async () => {
  api = await createApi(inject("postgresSocketDir"));
  project = await api.project("acme");
  const { owner } = api.database;
  await owner`insert into images (project_id, digest, media_type, manifest, config, layers, size_bytes)
    values (${project.id}, ${digest("c")}, 'm', '{}', '{}', '[]', 10)`;
  for (const [repository, tag] of [
    ["app", "1"],
    ["docker.io/library/app", "3"],
    ["docker.io/library/app", `@${digest("c")}`],
  ]) {
    await owner`insert into tags (project_id, repository, tag, digest)
      values (${project.id}, ${repository ?? ""}, ${tag ?? ""}, ${digest("c")})`;
  }
});
afterAll(() => api.close());

describe("pushes", () => {
  const destination = "registry.example:5000/team/app:2";
  const push = (body: object) => call<Problem & { id: string; kind: string }>("POST", "/v1/images/push", body);
  test("are jobs that mean the image as it is now, with credentials kept sealed until they have ended", async () => {
    const auth = { username: "u", password: "hunter2" };
    const { status, body } = await push({ reference: "acme/app:1", destination, auth });
    expect(status).toBe(202);
    expect(body).toMatchObject({ kind: "push", status: "queued" });
    const payload = async () =>
      (await api.database.owner<{ payload: { auth?: string } }[]>`select payload from jobs where id = ${body.id}`)[0]
        ?.payload;
    const kept = await payload();
    expect(kept).toMatchObject({ reference: "app:1", digest: digest("c"), destination });
    expect(JSON.parse(open(api.services.secretKey, `push:${body.id}`, kept?.auth ?? ""))).toEqual(auth);
    expect(JSON.stringify([kept, body]) + api.logged.join("")).not.toContain("hunter2");
    expect((await call("POST", `/v1/jobs/${body.id}/cancel`)).status).toBe(200);
    expect(await payload()).toEqual({ reference: "app:1", digest: digest("c"), destination });
  });

  test("go where the image came from unless told", async () => {
    // "app" is the project's own; its image from Docker Hub has that registry in its name.
    const { body } = await push({ reference: "docker.io/app:3" });
    const [job] = await api.database.owner`select payload->>'destination' as to from jobs where id = ${body.id}`;
    expect(job).toEqual({ to: "docker.io/library/app:3" });
    expect((await push({ reference: digest("c"), destination })).status).toBe(202);
  });

  test.each([
    ["a name without a registry", { reference: "app:1" }],
    ["a digest", { reference: digest("c") }],
    ["an image pulled by digest", { reference: `docker.io/app@${digest("c")}` }],
    ["a destination without a registry", { reference: "app:1", destination: "team/app:1" }],
    ["a destination with a digest", { reference: "app:1", destination: `r.example/app@${digest("c")}` }],
    ["a destination that is none", { reference: "app:1", destination: "r.example/App" }],
  ])("without a place to go are refused, naming the field: %s", async (_, body) => {
    expect(await push(body)).toMatchObject({
      status: 400,
      body: { code: "invalid_request", errors: [{ pointer: "/destination" }] },
    });
  });

  test("of what the project does not have are 404", async () => {
    expect(await push({ reference: "app:9", destination })).toMatchObject({
      status: 404,
      body: { code: "image_not_found" },
    });
    expect((await push({ reference: digest("9"), destination })).status).toBe(404);
  });
});
