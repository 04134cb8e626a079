import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { newId } from "../../src/core/ids.ts";
import { ask, createApi, type Problem, type TestApi, type TestProject } from "../support/api.ts";

let api: TestApi;
let project: TestProject;

beforeAll(async () => {
  api = await createApi(inject("postgresSocketDir"));
  project = await api.project("team");
  await api.host();
});
afterAll(() => api.close());

const send = <T>(method: string, path: string, body?: unknown) =>
  ask<T>(api.app, project.tokens.admin, method, path, body);

interface Source {
  id: string;
  deploymentId: string | null;
  deploy: Record<string, unknown> | null;
}

describe("a health check", () => {
  const create = (healthcheck: unknown) =>
    send<Problem & { healthcheck: unknown; health: unknown }>("POST", "/v1/containers", { image: "a:1", healthcheck });

  test("is one of command, http and tcp", async () => {
    for (const wrong of [{}, { tcp: { port: 1 }, http: { port: 1 } }, { command: [] }, { http: { port: 0 } }]) {
      expect(await create(wrong)).toMatchObject({ status: 400, body: { code: "invalid_request" } });
    }
    expect((await create({ http: { port: 1, path: "no" } })).body.errors).toMatchObject([
      { pointer: "/healthcheck/http/path" },
    ]);
  });

  test("is shown as it was asked, with its defaults", async () => {
    const { status, body } = await create({ http: { port: 8080 }, retries: 5 });
    expect([status, body.health]).toEqual([202, null]);
    expect(body.healthcheck).toEqual({
      http: { port: 8080, path: "/" },
      intervalSeconds: 30,
      timeoutSeconds: 30,
      retries: 5,
      startPeriodSeconds: 30,
      startIntervalSeconds: 1,
    });
    expect((await create(null)).body.healthcheck).toBeNull();
  });
});

describe("a source's deployments", () => {
  test("are what its template says, which is shown as it was asked; a port must not be there twice", async () => {
    const asked = {
      ports: [{ containerPort: 8080, hostPort: 8000, protocol: "tcp" }],
      env: { A: "b" },
      healthcheck: { tcp: { port: 8080 }, intervalSeconds: 5 },
      resources: { memory: 64 * 2 ** 20 },
    };
    const source = { name: "web", provider: "berth", deploy: asked };
    const made = await send<Source>("POST", "/v1/sources", source);
    expect(made).toMatchObject({ status: 201, body: { deploymentId: null, deploy: asked } });
    expect(made.body.deploy).toMatchObject({ restartPolicy: { name: "unless-stopped" }, publishAll: false });
    const seen = await ask<Source>(api.app, project.tokens.viewer, "GET", "/v1/sources/web");
    expect(seen.body.deploy).toMatchObject({ env: {} });
    const twice = { ...source, name: "twice", deploy: { ports: [asked.ports[0], asked.ports[0]] } };
    expect((await send<Problem>("POST", "/v1/sources", twice)).body.errors).toMatchObject([
      { pointer: "/deploy/ports/1/hostPort" },
    ]);
    for (const field of ["image", "name", "autoRemove"]) {
      const wrong = { ...source, name: "wrong", deploy: { [field]: "x" } };
      expect((await send<Problem>("POST", "/v1/sources", wrong)).body.errors).toMatchObject([
        { pointer: `/deploy/${field}`, detail: "There is no such field." },
      ]);
    }
  });

  test("are listed by source, build and status; one that waits ends when its job is cancelled", async () => {
    const { body: source } = await send<Source>("POST", "/v1/sources", { name: "api", provider: "berth", deploy: {} });
    const [id, job] = [newId("deployment"), newId("job")];
    await api.database.owner`
      insert into jobs (id, project_id, kind, subject_id, payload) values (${job}, ${project.id}, 'deploy', ${id}, '{}')`;
    await api.database.owner`
      insert into deployments (id, project_id, source_id, job_id, image_digest, template)
      select ${id}, project_id, id, ${job}, 'sha256:x', deploy from sources where id = ${source.id}`;
    const listed = async (query: string) =>
      (await send<{ items: { id: string }[] }>("GET", `/v1/deployments?${query}`)).body.items.map((each) => each.id);
    expect(await listed("source=api")).toEqual([id]);
    expect(await listed(`source=${source.id}&status=pending`)).toEqual([id]);
    for (const query of ["source=web", "source=unknown", "status=failed", "buildId=bld_x"]) {
      expect(await listed(query)).toEqual([]);
    }
    await send("POST", `/v1/jobs/${job}/cancel`);
    const ended = await send("GET", `/v1/deployments/${id}`);
    expect(ended.body).toMatchObject({ status: "failed", reason: "cancelled", containerId: null, ports: [] });
    expect((await send<Source>("GET", "/v1/sources/api")).body.deploymentId).toBeNull();
  });
});
