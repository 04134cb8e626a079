import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { ask, createApi, type Problem, type TestApi, type TestProject } from "../support/api.ts";

let api: TestApi;
let project: TestProject;

beforeAll(async () => {
  api = await createApi(inject("postgresSocketDir"), { contextBytes: 1000 });
  project = await api.project("acme");
  await api.host();
});
afterAll(() => api.close());

const post = (path: string, body?: unknown, headers?: Record<string, string>) =>
  ask<Problem>(api.app, project.tokens.deployer, "POST", path, body, headers);

const container = (more: object) => ({ image: "debian:12", ...more });

/** Each wrong field with the place that the answer must name. */
const wrong: [string, object, string][] = [
  ["an unknown field", container({ imagee: "x" }), "/imagee"],
  ["an unknown field inside", container({ resources: { cpu: 1 } }), "/resources/cpu"],
  ["no image", { name: "x" }, "/image"],
  ["a port out of range", container({ ports: [{ containerPort: 65_536 }] }), "/ports/0/containerPort"],
  ["a port that is no number", container({ ports: [{ containerPort: "80" }] }), "/ports/0/containerPort"],
  [
    "a port given twice",
    container({
      ports: [
        { containerPort: 1, hostPort: 8 },
        { containerPort: 2, hostPort: 8 },
      ],
    }),
    "/ports/1/hostPort",
  ],
  ["a protocol that is none", container({ ports: [{ containerPort: 80, protocol: "sctp" }] }), "/ports/0/protocol"],
  [
    "a host address that is none",
    container({ ports: [{ containerPort: 80, hostAddress: "example.org" }] }),
    "/ports/0/hostAddress",
  ],
  ["a name with ../", container({ name: "../etc" }), "/name"],
  ["a name with a newline", container({ name: "web\n1" }), "/name"],
  ["a name that is a flag", container({ name: "--privileged" }), "/name"],
  ["a name with a terminal escape", container({ name: "\u001b[31mred" }), "/name"],
  ["a name that is too long", container({ name: "a".repeat(64) }), "/name"],
  ["a huge integer", container({ resources: { memory: 1e300 } }), "/resources/memory"],
  ["a negative amount", container({ resources: { cpus: -1 } }), "/resources/cpus"],
  ["a variable's name with =", container({ env: { "A=B": "x" } }), "/env/A=B"],
  ["a variable with NUL", container({ env: { A: "x\0y" } }), "/env/A"],
  ["half of a surrogate pair", container({ command: ["\ud800"] }), "/command/0"],
  ["a user with a space", container({ user: "0 root" }), "/user"],
  ["a relative working directory", container({ workingDirectory: "app" }), "/workingDirectory"],
  ["a working directory with ..", container({ workingDirectory: "/app/../.." }), "/workingDirectory"],
  ["a capability that is never given", container({ capabilities: { add: ["SYS_ADMIN"] } }), "/capabilities/add/0"],
  [
    "attempts without on-failure",
    container({ restartPolicy: { name: "always", maxAttempts: 3 } }),
    "/restartPolicy/maxAttempts",
  ],
  ["a signal that is none", container({ stopSignal: "SIGNOPE" }), "/stopSignal"],
  ["a label's key with a newline", container({ labels: { "a\nb": "x" } }), "/labels/a\nb"],
];

test("a field that was left out, a method and a path that are none are told in words that help", async () => {
  expect((await post("/v1/containers", { imag: "x" })).body).toMatchObject({
    detail: "/image: Must be given: string is expected.",
    errors: [{ pointer: "/image" }, { pointer: "/imag", detail: "There is no such field." }],
  });
  const to = (method: string, path: string) => ask<Problem>(api.app, project.tokens.deployer, method, path);
  expect((await to("DELETE", "/v1/containers")).body.detail).toBe(
    "DELETE is not allowed here; what is: POST, GET, HEAD.",
  );
  expect((await to("GET", "/v1/volumes")).body.detail).toBe(
    "There is nothing at this path; /docs lists the operations.",
  );
});

test.each([
  "builds?tag=a%00b",
  "builds?sourceId=%00",
  "builds?label=a%3D%00",
  "ports?containerId=%00",
  "events?type=%00",
])("a query with a NUL is 400: %s", async (path) => {
  const answer = await ask<Problem>(api.app, project.tokens.viewer, "GET", `/v1/${path}`);
  const pointer = `query/${/\?(\w+)=/.exec(path)?.[1] ?? ""}`;
  expect(answer).toMatchObject({ status: 400, body: { code: "invalid_request", errors: [{ pointer }] } });
});

describe("a body that is wrong is 400 and the place is named", () => {
  test.each(wrong)("%s", async (_, body, pointer) => {
    const answer = await post("/v1/containers", body);
    expect(answer).toMatchObject({ status: 400, body: { code: "invalid_request" } });
    expect(answer.body.errors?.map((error) => error.pointer)).toContain(pointer);
    expect(answer.headers.get("content-type")).toBe("application/problem+json");
  });

  test("__proto__ is a field like another that there is not", async () => {
    for (const [text, pointer] of [
      ['{"image":"debian","__proto__":{"x":1}}', "/__proto__"],
      ['{"image":"debian","env":{"\\u005f_proto__":"x"}}', "/env/__proto__"],
    ] as const) {
      const answer = await post("/v1/containers", text);
      expect(answer).toMatchObject({ status: 400, body: { code: "invalid_request", errors: [{ pointer }] } });
    }
    expect(Object.prototype).not.toHaveProperty("x");
  });

  test("nothing of it was left behind", async () => {
    const [count] = await api.database.owner<{ n: number }[]>`
      select (select count(*) from containers)::int + (select count(*) from ports)::int + (select count(*) from events)::int n`;
    expect(count?.n).toBe(0);
  });
});

describe("a body that can't be read", () => {
  test("is not JSON", async () => {
    expect(await post("/v1/containers", "{nope")).toMatchObject({ status: 400, body: { code: "invalid_json" } });
    expect(await post("/v1/containers", "")).toMatchObject({ status: 400, body: { code: "invalid_json" } });
  });

  test("is nested deeply", async () => {
    const deep = `{"image":${"[".repeat(100_000)}${"]".repeat(100_000)}}`;
    expect((await post("/v1/containers", deep)).status).toBe(400);
    const deepInAny = `{"source":${'{"git":'.repeat(1_000)}1${"}".repeat(1_000)}}`;
    expect((await post("/v1/builds", deepInAny)).status).toBe(400);
  });

  test("is too large, by its own word or chunked", async () => {
    const large = JSON.stringify({ image: "x".repeat(1024 * 1024) });
    expect(await post("/v1/containers", large)).toMatchObject({ status: 413, body: { code: "body_too_large" } });
    const chunks = new ReadableStream({
      pull: (controller) => controller.enqueue(new TextEncoder().encode(" ".repeat(65_536))),
    });
    const response = await api.app.request("/v1/containers", {
      method: "POST",
      headers: { authorization: `Bearer ${project.tokens.deployer}`, "content-type": "application/json" },
      body: chunks,
      duplex: "half",
    });
    expect(response.status).toBe(413);
  });

  test("is of another type", async () => {
    const answer = await post("/v1/containers", "image=x", { "content-type": "application/x-www-form-urlencoded" });
    expect(answer).toMatchObject({ status: 415, body: { code: "unsupported_media_type" } });
    expect(answer.body.detail).toContain("application/json");
  });

  test("is never read before the token is checked", async () => {
    let pulled = 0;
    const body = new ReadableStream(
      {
        pull: () => {
          pulled++;
        },
      },
      { highWaterMark: 0 },
    );
    const send = (authorization: string) =>
      api.app.request("/v1/containers", {
        method: "POST",
        headers: { authorization, "content-type": "application/json" },
        body,
        duplex: "half",
      });
    expect((await send("Bearer berth_nobody")).status).toBe(401);
    expect((await send(`Bearer ${project.tokens.viewer}`)).status).toBe(403);
    expect(pulled).toBe(0);
  });
});

describe("references", () => {
  test.each(["../web", "UPPER", "web:1\n", "--flag", "web@sha256:12", "a//b", "web:", "x".repeat(513)])(
    "%j",
    async (image) => {
      const answer = await post("/v1/containers", { image });
      expect(answer.status).toBe(400);
      expect(["invalid_reference", "invalid_request"]).toContain(answer.body.code);
    },
  );
});

describe("queries and paths", () => {
  const get = (path: string) => ask<Problem>(api.app, project.tokens.viewer, "GET", path);

  test.each([
    ["/v1/containers?colour=red", "query/colour"],
    ["/v1/containers?limit=0", "query/limit"],
    ["/v1/containers?limit=1e3", "query/limit"],
    ["/v1/containers?cursor=bm9wZQ", "query/cursor"],
    ["/v1/containers?label=x", "query/label/0"],
    ["/v1/containers?status=happy", "query/status"],
    ["/v1/events?cursor=x", "query/cursor"],
  ])("%s", async (path, pointer) => {
    expect(await get(path)).toMatchObject({ status: 400, body: { code: "invalid_request", errors: [{ pointer }] } });
  });

  test.each([
    "/v1/containers/..%2f..%2fetc",
    "/v1/containers/a%00b",
    "/v1/containers/%ff",
    "/v1/ports/ctr_1",
    "/v1/nothing",
    "/nothing",
  ])("%s does not exist", async (path) => {
    expect(await get(path)).toMatchObject({ status: 404, body: { code: "not_found" } });
  });

  test("a method that is not there is 405 and says which are", async () => {
    const answer = await ask<Problem>(api.app, project.tokens.viewer, "PUT", "/v1/containers");
    expect(answer).toMatchObject({ status: 405, body: { code: "method_not_allowed" } });
    expect(answer.headers.get("allow")?.split(", ").sort()).toEqual(["GET", "HEAD", "POST"]);
  });

  test("an Idempotency-Key that is none", async () => {
    expect(await post("/v1/containers", container({}), { "idempotency-key": "a b" })).toMatchObject({
      status: 400,
      body: { errors: [{ pointer: "header/Idempotency-Key" }] },
    });
  });
});

describe("tokens", () => {
  const get = (headers: Record<string, string>) =>
    ask<Problem>(api.app, null, "GET", "/v1/containers", undefined, headers);

  test.each([
    {},
    { authorization: "Bearer" },
    { authorization: "Basic eDp5" },
    { authorization: "Bearer berth_wrong" },
  ])("%j", async (headers) => {
    const answer = await get(headers);
    expect(answer).toMatchObject({ status: 401, body: { code: "unauthorized" } });
    expect(answer.headers.get("www-authenticate")).toContain("Bearer");
  });

  test("are never in the log, wherever a client puts them", async () => {
    const secret = "berth_thisisasecrettokenthatleaks";
    await ask(api.app, null, "GET", `/v1/containers/${secret}?token=${secret}`);
    await ask(api.app, secret, "GET", `/v1/${secret}`);
    await ask(api.app, project.tokens.viewer, "GET", "/v1/containers/x%0d%0a%7b%22level%22:60%7d");
    const all = api.logged.join("");
    expect(all).not.toContain(secret);
    expect(all).not.toContain(project.tokens.viewer);
    // One record a line, whatever is in the path.
    for (const line of api.logged) expect(line.trimEnd()).not.toContain("\n");
  });
});

test("a media type may be written in capitals", async () => {
  const body = JSON.stringify({ source: { git: { url: "https://git.example/a.git" } } });
  const response = await api.app.request("/v1/builds", {
    method: "POST",
    headers: { authorization: `Bearer ${project.tokens.deployer}`, "content-type": "Application/JSON" },
    body,
  });
  expect(response.status).toBe(202);
});
