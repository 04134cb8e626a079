import { readFileSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { parse } from "yaml";
import { newId } from "../../src/core/ids.ts";
import { allows, type Role, roles } from "../../src/core/roles.ts";
import { permissions } from "../../src/routes/permissions.ts";
import { ask, createApi, type Problem, type TestApi, type TestProject } from "../support/api.ts";

interface Operation {
  id: keyof typeof permissions;
  method: string;
  path: string;
  hasBody: boolean;
}

const document = parse(readFileSync(new URL("../../openapi.yaml", import.meta.url), "utf8")) as {
  paths: Record<string, Record<string, { operationId: keyof typeof permissions; requestBody?: unknown }>>;
};

const operations: Operation[] = Object.entries(document.paths).flatMap(([path, methods]) =>
  Object.entries(methods).map(([method, operation]) => ({
    id: operation.operationId,
    method: method.toUpperCase(),
    path,
    hasBody: operation.requestBody !== undefined,
  })),
);

let api: TestApi;
let mine: TestProject;
let theirs: TestProject;
/** What the other project has, by the path parameter that names it. */
const foreign = {
  container: "",
  port: "",
  build: "",
  job: "",
  token: "",
  source: "",
  delivery: "",
  deployment: newId("deployment"),
};
const digest = `sha256:${"b".repeat(64)}`;

beforeAll(async () => {
  api = await createApi(inject("postgresSocketDir"));
  mine = await api.project("mine");
  theirs = await api.project("theirs");
  await api.host();
  const made = await ask<{ id: string; ports: { id: string }[] }>(
    api.app,
    theirs.tokens.deployer,
    "POST",
    "/v1/containers",
    {
      image: "debian:12",
      name: "secret",
      ports: [{ containerPort: 80 }],
    },
  );
  foreign.container = made.body.id;
  foreign.port = made.body.ports[0]?.id ?? "";
  const build = await api.app.request("/v1/builds", {
    method: "POST",
    headers: { authorization: `Bearer ${theirs.tokens.deployer}`, "content-type": "application/x-tar" },
    body: "tar",
  });
  const { id, jobId } = (await build.json()) as { id: string; jobId: string };
  foreign.build = id;
  foreign.job = jobId;
  const token = await ask<{ id: string }>(api.app, theirs.tokens.admin, "POST", `/v1/projects/${theirs.id}/tokens`, {
    role: "viewer",
  });
  foreign.token = token.body.id;
  const source = { name: "secret", provider: "generic", url: "https://git.example/secret.git" };
  foreign.source = (await ask<{ id: string }>(api.app, theirs.tokens.deployer, "POST", "/v1/sources", source)).body.id;
  foreign.delivery = (
    await ask<{ id: string }>(api.app, theirs.tokens.deployer, "POST", `/v1/sources/${foreign.source}/build`)
  ).body.id;
  await api.database.owner`insert into images (project_id, digest, media_type, manifest, config, layers, size_bytes)
    values (${theirs.id}, ${digest}, 'm', '{}', '{}', '[]', 1)`;
  await api.database.owner`
    insert into deployments (id, project_id, source_id, image_digest, template)
    values (${foreign.deployment}, ${theirs.id}, ${foreign.source}, ${digest}, '{}')`;
});
afterAll(() => api.close());

/** The path with the other project's id in it. */
function foreignPath({ path }: Operation): string {
  const noun = /^\/v1\/([\w-]+?)s\//.exec(path)?.[1] ?? "";
  const ids: Record<string, string> = {
    ...foreign,
    project: theirs.id,
    host: "hst_00000000000000000000",
    "join-token": "jtk_00000000000000000000",
  };
  return path
    .replace("{tokenId}", foreign.token)
    .replace("{deliveryId}", foreign.delivery)
    .replace("{reference}", encodeURIComponent(digest))
    .replace("{id}", ids[noun] ?? "")
    .replace(/\/files$/, "/files?path=/etc");
}

describe("every operation of openapi.yaml", () => {
  test("has a role, and every role has its operation", () => {
    expect(operations.map(({ id }) => id).sort()).toEqual(Object.keys(permissions).sort());
  });

  test.each(operations.filter(({ id }) => permissions[id] !== "public"))(
    "$id refuses lesser roles and no token",
    async (operation) => {
      const needed = permissions[operation.id] as Role;
      const path = foreignPath(operation);
      expect((await ask<Problem>(api.app, null, operation.method, path)).status).toBe(401);
      for (const role of roles) {
        const token = role === "operator" ? api.operator : theirs.tokens[role];
        // Without a body: what is allowed gets as far as the body's check, or reads only.
        if (allows(role, needed)) continue;
        expect(await ask<Problem>(api.app, token, operation.method, path)).toMatchObject({
          status: 403,
          body: { code: "forbidden" },
        });
      }
    },
  );

  const named = operations.filter(({ id, path }) => path.includes("{") && permissions[id] !== "public");
  test.each(named.filter(({ path }) => !path.startsWith("/v1/hosts")))(
    "$id answers another project's id exactly as one that does not exist",
    async (operation) => {
      const { method } = operation;
      const body = operation.hasBody ? bodies[operation.id] : undefined;
      const token = mine.tokens.admin;
      const real = await ask<Problem>(api.app, token, method, foreignPath(operation), body);
      const unknown = await ask<Problem>(api.app, token, method, unknownPath(operation), body);
      expect(real.status).toBe(permissions[operation.id] === "operator" ? 403 : 404);
      expect({ ...real.body, requestId: "" }).toEqual({
        ...unknown.body,
        requestId: "",
        detail: unknown.body.detail.replace("c".repeat(64), "b".repeat(64)),
      });
    },
  );

  test("nothing of the other project has changed", async () => {
    const { body } = await ask<{ status: string; labels: object }>(
      api.app,
      theirs.tokens.viewer,
      "GET",
      "/v1/containers/secret",
    );
    expect(body).toMatchObject({ status: "starting", labels: {} });
    expect(
      (await ask<{ items: unknown[] }>(api.app, theirs.tokens.admin, "GET", `/v1/projects/${theirs.id}/tokens`)).body
        .items,
    ).toHaveLength(4);
    expect(
      (await ask<{ status: string }>(api.app, theirs.tokens.viewer, "GET", `/v1/jobs/${foreign.job}`)).body.status,
    ).toBe("queued");
  });

  test("lists and events show nothing of another project", async () => {
    for (const path of ["containers", "ports", "builds", "images", "jobs", "events", "sources"]) {
      expect((await ask<{ items: unknown[] }>(api.app, mine.tokens.viewer, "GET", `/v1/${path}`)).body.items).toEqual(
        [],
      );
    }
    const projects = await ask<{ items: { id: string }[] }>(api.app, mine.tokens.viewer, "GET", "/v1/projects");
    expect(projects.body.items.map(({ id }) => id)).toEqual([mine.id]);
    const ports = await ask<{ items: unknown[] }>(
      api.app,
      mine.tokens.viewer,
      "GET",
      `/v1/ports?containerId=${foreign.container}`,
    );
    expect(ports.body.items).toEqual([]);
  });

  test("a port can't be published for another project's container", async () => {
    const body = { containerId: foreign.container, containerPort: 80 };
    expect(await ask<Problem>(api.app, mine.tokens.deployer, "POST", "/v1/ports", body)).toMatchObject({
      status: 404,
      body: { code: "not_found" },
    });
  });
});

/** Valid bodies of the operations that have one and name something in their path. */
const bodies: Partial<Record<keyof typeof permissions, unknown>> = {
  updateContainer: { labels: { stolen: "yes" } },
  killContainer: { signal: "SIGKILL" },
  execContainer: { command: ["id"] },
  updateQuota: { containers: 1 },
  createToken: { role: "admin" },
  updateSource: { url: "https://git.example/stolen.git" },
  buildSource: {},
};

function unknownPath({ path }: Operation): string {
  const noun = /^\/v1\/([\w-]+?)s\//.exec(path)?.[1] ?? "";
  const prefix: Record<string, string> = {
    container: "ctr",
    port: "prt",
    build: "bld",
    job: "job",
    project: "prj",
    host: "hst",
    source: "src",
    deployment: "dep",
    "join-token": "jtk",
  };
  return path
    .replace("{tokenId}", `tok_${"0".repeat(20)}`)
    .replace("{deliveryId}", `dlv_${"0".repeat(20)}`)
    .replace("{reference}", encodeURIComponent(`sha256:${"c".repeat(64)}`))
    .replace("{id}", `${prefix[noun] ?? ""}_${"0".repeat(20)}`)
    .replace(/\/files$/, "/files?path=/etc");
}

describe("the operator's token", () => {
  test("acts on the project that Berth-Project names, and on default without it", async () => {
    const list = (headers: Record<string, string>) =>
      ask<{ items: { name: string }[] } & Problem>(api.app, api.operator, "GET", "/v1/containers", undefined, headers);
    expect((await list({ "berth-project": theirs.id })).body.items.map(({ name }) => name)).toEqual(["secret"]);
    expect((await list({ "berth-project": mine.id })).body.items).toEqual([]);
    expect((await list({ "berth-project": "prj_00000000000000000000" })).body.code).toBe("not_found");
    await api.project("default");
    expect((await list({})).body.items).toEqual([]);
  });

  test("another token's Berth-Project must be its own", async () => {
    const list = (project: string) =>
      ask<Problem>(api.app, mine.tokens.viewer, "GET", "/v1/containers", undefined, { "berth-project": project });
    expect((await list(mine.id)).status).toBe(200);
    expect((await list(theirs.id)).body).toMatchObject({ status: 404, code: "not_found" });
  });
});
