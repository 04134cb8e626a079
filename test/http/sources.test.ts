import { afterAll, beforeAll, beforeEach, describe, expect, inject, test } from "vitest";
import { open } from "../../src/core/keys.ts";
import { ask, createApi, type Problem, type TestApi, type TestProject } from "../support/api.ts";

interface Source {
  id: string;
  name: string;
  hasAuth: boolean;
  hasRegistryAuth: boolean;
  hasSecrets: boolean;
  branches: string[];
  subdirectory: string | null;
  build: { tags: string[] };
  deploy: { env: Record<string, string>; ports: object[] } | null;
  webhook: { url: string; secret?: string };
}

let api: TestApi;
let project: TestProject;
const call = <T = Source & Problem>(
  method: string,
  path: string,
  body?: unknown,
  role: "viewer" | "deployer" = "deployer",
) => ask<T>(api.app, project.tokens[role], method, path, body);
const url = "https://git.example/team/web.git";
const create = (more: object = {}) => call("POST", "/v1/sources", { name: "web", provider: "github", url, ...more });

beforeAll(async () => {
  api = await createApi(inject("postgresSocketDir"));
});
afterAll(() => api.close());
let projects = 0;
beforeEach(async () => {
  project = await api.project(`acme-${String(projects++)}`);
});

describe("a source", () => {
  test("is answered with its webhook's URL and, this once, its secret", async () => {
    const { status, headers, body } = await create();
    expect(status).toBe(201);
    expect(headers.get("location")).toBe(`/v1/sources/${body.id}`);
    expect(body).toMatchObject({
      provider: "github",
      url,
      branches: [],
      hasAuth: false,
      build: { tags: ["web:latest"] },
    });
    expect(body.webhook).toEqual({
      url: `http://localhost/v1/webhooks/${body.id}`,
      secret: expect.stringMatching(/^whsec_/) as string,
    });
    const shown = await call("GET", `/v1/sources/${body.id}`);
    expect(shown.body.webhook).toEqual({ url: body.webhook.url });
    expect((await call("GET", "/v1/sources/web")).body).toEqual(shown.body);
    expect((await call<{ items: Source[] }>("GET", "/v1/sources")).body.items).toEqual([shown.body]);
    const rows = await api.database.owner`select * from sources where id = ${body.id}`;
    const kept = JSON.stringify([rows, api.logged]);
    expect(kept).not.toContain(body.webhook.secret);
    expect(open(api.services.secretKey, `secret:${body.id}`, String(rows[0]?.["secret_sealed"]))).toBe(
      body.webhook.secret,
    );
  });

  test("that is pushed to Berth itself takes no credentials of another repository", async () => {
    const auth = { username: "ada", password: "pass" };
    const pushed = { name: "pushed", provider: "berth" };
    expect(await call("POST", "/v1/sources", { ...pushed, auth })).toMatchObject({
      status: 400,
      body: { errors: [{ pointer: "/auth" }] },
    });
    expect((await call("POST", "/v1/sources", pushed)).status).toBe(201);
    expect(await call("PATCH", "/v1/sources/pushed", { auth })).toMatchObject({
      status: 409,
      body: { code: "invalid_state" },
    });
  });

  test("has the webhook's URL that the operator says", async () => {
    api.services.publicUrl = "https://example.org/berth/";
    const { body } = await create();
    api.services.publicUrl = null;
    expect(body.webhook.url).toBe(`https://example.org/berth/v1/webhooks/${body.id}`);
  });

  test("is made once for an Idempotency-Key, and the secret is kept sealed for the repeat", async () => {
    const headers = { "idempotency-key": "k1" };
    const body = { name: "web", provider: "gitea", url };
    const first = await ask<Source>(api.app, project.tokens.deployer, "POST", "/v1/sources", body, headers);
    const again = await ask<Source>(api.app, project.tokens.deployer, "POST", "/v1/sources", body, headers);
    expect(again.body).toEqual(first.body);
    const kept = await api.database.owner`select response from idempotency_keys where project_id = ${project.id}`;
    expect(JSON.stringify(kept)).not.toContain("whsec_");
  });

  test("keeps its credentials sealed, shows none, and can lose them", async () => {
    const auth = { username: "ada", password: "hunter2-of-the-source" };
    const { body } = await create({ auth });
    expect(body.hasAuth).toBe(true);
    const row = async () => (await api.database.owner`select * from sources where id = ${body.id}`)[0];
    expect(JSON.parse(open(api.services.secretKey, `auth:${body.id}`, String((await row())?.["auth_sealed"])))).toEqual(
      auth,
    );
    const all = [body, await row(), (await call("GET", "/v1/sources")).body, (await call("GET", "/v1/events")).body];
    expect(JSON.stringify(all) + api.logged.join("")).not.toContain("hunter2");
    expect((await call("PATCH", "/v1/sources/web", { branches: ["main"] })).body.hasAuth).toBe(true);
    expect((await call("PATCH", "/v1/sources/web", { url: "https://git.example/other.git" })).body.hasAuth).toBe(true);
    // Of another host they are none: it could keep them.
    for (const other of ["https://evil.example/x.git", "http://git.example/x.git", "https://git.example:444/x.git"]) {
      expect((await call("PATCH", "/v1/sources/web", { url: other })).body.hasAuth, other).toBe(false);
      expect((await call("PATCH", "/v1/sources/web", { url, auth })).body.hasAuth).toBe(true);
    }
    expect((await call("PATCH", "/v1/sources/web", { auth: null })).body.hasAuth).toBe(false);
  });

  test.each([
    [
      "users at registries",
      "registryAuth",
      "hasRegistryAuth",
      { "registry.example": { username: "ada", password: "hunter2" } },
    ],
    ["secrets for its builds", "secrets", "hasSecrets", { npm: "hunter2", "a/b:c.d-e": "" }],
  ] as const)(
    "keeps its %s sealed, shows none, gives them to its builds alone, and can lose them",
    async (_, field, has, given) => {
      const { body } = await create({ [field]: given, auth: { username: "git", password: "of the repository" } });
      expect(body).toMatchObject({ hasAuth: true, hasRegistryAuth: false, hasSecrets: false, [has]: true });
      const { secretKey } = api.services;
      const { owner } = api.database;
      const kept = async () =>
        (
          await owner<{ seals: Record<string, string | null> }[]>`
        select json_build_object('registryAuth', registry_auth_sealed, 'secrets', secrets_sealed) as seals
        from sources where id = ${body.id}`
        )[0]?.seals[field];
      expect(JSON.parse(open(secretKey, `${field}:${body.id}`, (await kept()) ?? ""))).toEqual(given);

      await call("POST", "/v1/sources/web/build", {});
      const rows = await owner<{ id: string; payload: Record<string, string> }[]>`
      select id, payload from jobs where subject_id = ${body.id}`;
      const [job] = rows;
      const sealed = job?.payload[field] ?? "";
      expect(JSON.parse(open(secretKey, `build:${job?.payload["buildJobId"] ?? ""}`, sealed))).toEqual(given);
      expect(() => open(secretKey, `source:${job?.id ?? ""}`, sealed)).toThrow();
      const shown = [
        body,
        rows,
        await kept(),
        (await call("GET", "/v1/events")).body,
        (await call("GET", "/v1/jobs")).body,
      ];
      expect(JSON.stringify(shown) + api.logged.join("")).not.toContain("hunter2");

      expect((await call("PATCH", "/v1/sources/web", { branches: ["main"] })).body[has]).toBe(true);
      expect((await call("PATCH", "/v1/sources/web", { [field]: null })).body[has]).toBe(false);
      await call("POST", "/v1/sources/web/build", {});
      const [later] = await owner`
      select payload ? ${field} as has from jobs where subject_id = ${body.id} and payload->>'ref' = 'refs/heads/main'`;
      expect(later).toEqual({ has: false });
      expect((await call("PATCH", "/v1/sources/web", { [field]: given })).body[has]).toBe(true);
      expect((await call("PATCH", "/v1/sources/web", { [field]: {} })).body[has]).toBe(false);
      expect(await kept()).toBeNull();
    },
  );

  test("loses its secrets with its repository, whose builds alone they are for", async () => {
    const secrets = { npm: "hunter2" };
    await create({ secrets });
    const patch = async (change: object) => (await call("PATCH", "/v1/sources/web", change)).body.hasSecrets;
    expect(await patch({ url, branches: ["main"] })).toBe(true);
    expect(await patch({ url: "https://git.example/other.git" })).toBe(false);
    expect(await patch({ url, secrets })).toBe(true);
  });

  test("is changed field by field", async () => {
    const { body } = await create({ subdirectory: "a/./b/", build: { tags: ["site:1"], args: { A: "1" } } });
    expect(body).toMatchObject({ subdirectory: "a/b", build: { tags: ["site:1"], args: { A: "1" } } });
    const change = { name: "site", branches: ["main", "dev", "main"], subdirectory: null, deploy: { env: { K: "v" } } };
    const { body: now } = await call("PATCH", "/v1/sources/web", change);
    expect(now).toMatchObject({ id: body.id, name: "site", branches: ["main", "dev"], subdirectory: null });
    expect(now.build).toMatchObject({ tags: ["site:1"], args: { A: "1" } });
    expect(now.deploy).toMatchObject({ env: { K: "v" } });
    // As of a container, a viewer is not shown its variables.
    expect((await call("GET", "/v1/sources/site", undefined, "viewer")).body.deploy?.env).toEqual({});
    expect((await call("PATCH", "/v1/sources/site", { deploy: null })).body.deploy).toBeNull();
    expect((await call("PATCH", "/v1/sources/site", { build: {} })).body.build).toMatchObject({
      tags: ["site:latest"],
    });
  });

  test("of another repository has built nothing", async () => {
    const { body } = await create();
    await api.database.owner`
      insert into source_heads (source_id, project_id, ref, commit) values (${body.id}, ${project.id}, 'HEAD', 'c')`;
    const heads = async () => (await call<{ heads: object[] }>("GET", "/v1/sources/web")).body.heads;
    await call("PATCH", "/v1/sources/web", { branches: ["x"], url });
    expect(await heads()).toEqual([{ ref: "HEAD", commit: "c", buildId: null }]);
    await call("PATCH", "/v1/sources/web", { url: `${url}2` });
    expect(await heads()).toEqual([]);
  });

  test("goes with its deliveries and what waits for it; its name is free again", async () => {
    const { body } = await create();
    await call("POST", "/v1/sources/web/build", {});
    expect((await call("DELETE", "/v1/sources/web")).status).toBe(204);
    expect((await call("GET", `/v1/sources/${body.id}`)).status).toBe(404);
    const jobs = await api.database.owner`select status from jobs where subject_id = ${body.id}`;
    expect([...jobs]).toEqual([{ status: "cancelled" }]);
    expect((await create()).status).toBe(201);
  });

  test("has one name in a project", async () => {
    await create();
    expect(await create()).toMatchObject({ status: 409, body: { code: "name_taken" } });
    await create({ name: "other" });
    expect(await call("PATCH", "/v1/sources/other", { name: "web" })).toMatchObject({ status: 409 });
  });

  test.each<[string, object, string]>([
    ["a URL with credentials", { url: "https://u:p@git.example/x" }, "/url"],
    ["a URL of another transport", { url: "ext::sh -c id" }, "/url"],
    ["no URL", { url: undefined }, "/url"],
    ["a URL of what is pushed to Berth", { provider: "berth" }, "/url"],
    ["an unknown provider", { provider: "sourcehut" }, "/provider"],
    ["a branch that is an option", { branches: ["--upload-pack=x"] }, "/branches/0"],
    ["a branch that is a full name", { branches: ["main", "refs/heads/main"] }, "/branches/1"],
    ["a branch that is a pattern", { branches: ["release-*"] }, "/branches/0"],
    ["a subdirectory outside", { subdirectory: "../x" }, "/subdirectory"],
    ["a user name with a colon", { auth: { username: "a:b", password: "p" } }, "/auth/username"],
    [
      "a user at what is no registry",
      { registryAuth: { "http://x/": { username: "a", password: "p" } } },
      "/registryAuth/http:~1~1x~1",
    ],
    ["a password with a line's end", { auth: { username: "a", password: "p\r\nX: y" } }, "/auth/password"],
    ["an unknown field", { secret: "mine" }, "/secret"],
    ["an unknown option of the build", { build: { source: {} } }, "/build/source"],
    ["an image in the template", { deploy: { image: "web:1" } }, "/deploy/image"],
    [
      "the same host port twice",
      { deploy: { ports: [1, 2].map((n) => ({ containerPort: n, hostPort: 8000 })) } },
      "/deploy/ports/1/hostPort",
    ],
  ])("is refused with %s, naming the field", async (_, more, pointer) => {
    expect(await create(more)).toMatchObject({
      status: 400,
      body: { code: "invalid_request", errors: [{ pointer }] },
    });
  });

  test("rotates its secret", async () => {
    const { body } = await create();
    const rotated = await call("POST", "/v1/sources/web/rotate-secret");
    expect(rotated.body.webhook.secret).toMatch(/^whsec_/);
    expect(rotated.body.webhook.secret).not.toBe(body.webhook.secret);
  });
});

describe("a build that is asked for", () => {
  test("is a delivery that reads the first branch, also when nothing has changed", async () => {
    await create({ branches: ["dev", "main"], auth: { username: "u", password: "hunter2" } });
    const made = await call<{ id: string }>("POST", "/v1/sources/web/build");
    expect(made).toMatchObject({
      status: 202,
      body: { event: "manual", ref: "refs/heads/dev", status: "received", buildId: null },
    });
    const [job] = await api.database.owner`
      select j.payload from jobs j join deliveries d on d.job_id = j.id where d.id = ${made.body.id}`;
    const payload = job?.["payload"] as { buildJobId: string; auth: { read: string; build: string } };
    expect(payload).toMatchObject({ ref: "refs/heads/dev", again: true });
    expect(JSON.stringify(payload)).not.toContain("hunter2");
    expect(open(api.services.secretKey, `build:${payload.buildJobId}`, payload.auth.build)).toContain("hunter2");
    expect(await call("POST", "/v1/sources/web/build", { branch: "main" })).toMatchObject({
      body: { ref: "refs/heads/main" },
    });
    expect(await call("POST", "/v1/sources/web/build", { branch: "x" })).toMatchObject({
      status: 400,
      body: { errors: [{ pointer: "/branch", detail: "The source builds dev, main." }] },
    });
  });

  test("of a git repository takes credentials, which are nowhere to be seen", async () => {
    const auth = { username: "ada", password: "hunter2-of-the-build" };
    const { status, body } = await call<{ id: string; jobId: string }>("POST", "/v1/builds", {
      source: { git: { url, auth } },
    });
    expect(status).toBe(202);
    const [job] = await api.database.owner`select payload from jobs where id = ${body.jobId}`;
    const sealed = (job?.["payload"] as { auth: string }).auth;
    expect(JSON.parse(open(api.services.secretKey, `build:${body.jobId}`, sealed))).toEqual(auth);
    const rows = await api.database.owner`select * from builds where id = ${body.id}`;
    expect(JSON.stringify([body, job, rows]) + api.logged.join("")).not.toContain("hunter2");
  });
});
