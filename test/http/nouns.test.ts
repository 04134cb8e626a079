import { createHash } from "node:crypto";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { open } from "../../src/core/keys.ts";
import { ask, createApi, type Problem, type TestApi, type TestProject } from "../support/api.ts";

let api: TestApi;
let project: TestProject;
const digest = (letter: string) => `sha256:${letter.repeat(64)}`;

async function addImage(letter: string, ...tags: [string, string][]) {
  const { owner } = api.database;
  const config = {
    architecture: "amd64",
    os: "linux",
    config: { Cmd: ["sh"], Labels: { of: letter } },
    history: [{ created_by: "x" }],
  };
  await owner`insert into images (project_id, digest, media_type, manifest, config, layers, size_bytes)
    values (${project.id}, ${digest(letter)}, 'm', '{}', ${JSON.stringify(config)}::text::jsonb, '[]', 10) on conflict do nothing`;
  for (const [repository, tag] of tags) {
    await owner`insert into tags (project_id, repository, tag, digest) values (${project.id}, ${repository}, ${tag}, ${digest(letter)})`;
  }
}

const call = <T = Problem>(method: string, path: string, body?: unknown, headers?: Record<string, string>) =>
  ask<T>(api.app, project.tokens.deployer, method, path, body, headers);

const upload = async (query: string, content: string, headers: Record<string, string> = {}) => {
  const response = await api.app.request(`/v1/builds${query}`, {
    method: "POST",
    headers: { authorization: `Bearer ${project.tokens.deployer}`, "content-type": "application/x-tar", ...headers },
    body: content,
  });
  return { status: response.status, body: (await response.json()) as Build & Problem };
};

interface Build {
  id: string;
  jobId: string;
  status: string;
  tags: string[];
  source: { digest: string | null; sizeBytes: number | null };
  args: Record<string, string>;
  labels: Record<string, string>;
}

beforeAll(async () => {
  api = await createApi(inject("postgresSocketDir"), { contextBytes: 100_000 });
  project = await api.project("acme");
  await api.host({ portFirst: 8000, portLast: 8003 });
});
afterAll(() => api.close());

describe("builds", () => {
  test("a tar is stored as a blob and queued with its options", async () => {
    const { status, body } = await upload(
      "?tag=acme/web:1&tag=web&arg=A%3Db%3Dc&label=team%3Dx&dockerfile=sub/Dockerfile&noCache=true",
      "the tar",
    );
    expect(status).toBe(202);
    expect(body).toMatchObject({
      status: "queued",
      tags: ["web:1", "web:latest"],
      args: { A: "b=c" },
      labels: { team: "x" },
    });
    expect(body.source).toMatchObject({
      digest: `sha256:${createHash("sha256").update("the tar").digest("hex")}`,
      sizeBytes: 7,
    });
    expect(await api.services.blobs.size(body.source.digest ?? "")).toBe(7);
    const [job] = await api.database.owner`select kind, status, subject_id from jobs where id = ${body.jobId}`;
    expect(job).toEqual({ kind: "build", status: "queued", subject_id: body.id });
    expect(
      (await call<{ items: Build[] }>("GET", "/v1/builds?label=team%3Dx&tag=web%3A1")).body.items.map(({ id }) => id),
    ).toEqual([body.id]);
  });

  test("the same key and tar is one build, another tar is 409", async () => {
    const headers = { "idempotency-key": "build-1" };
    const a = await upload("?tag=k:1", "same", headers);
    const b = await upload("?tag=k:1", "same", headers);
    expect(b.body.id).toBe(a.body.id);
    expect(await upload("?tag=k:1", "other", headers)).toMatchObject({
      status: 409,
      body: { code: "idempotency_key_reused" },
    });
    expect(await upload("?tag=k:2", "same", headers)).toMatchObject({ status: 409 });
  });

  test.each([
    ["", "", 400, "invalid_context"],
    ["", "x".repeat(100_001), 413, "body_too_large"],
    ["?dockerfile=../Dockerfile", "x", 400, "invalid_request"],
    ["?tag=registry.example/web:1", "x", 400, "invalid_reference"],
    ["?arg=1%3Dx", "x", 400, "invalid_request"],
    ["?arg=X", "x", 400, "invalid_request"],
    ["?secret=x", "x", 400, "invalid_request"],
  ])("%s of %o", async (query, content, status, code) => {
    expect(await upload(query, content)).toMatchObject({ status, body: { code } });
  });

  test("a git source is checked, kept and shown; its commit is what the worker finds", async () => {
    const git = { url: "https://Git.example:443/team/web.git", ref: "main", subdirectory: "./site/" };
    const asked = { source: { git }, tags: ["site:git"], args: { A: "1" }, limits: { timeoutSeconds: 60 } };
    const { status, body } = await call<Build>("POST", "/v1/builds", asked, { "idempotency-key": "git" });
    expect(status).toBe(202);
    const source = { kind: "git", url: "https://git.example/team/web.git", ref: "main", subdirectory: "site" };
    expect(body).toMatchObject({ status: "queued", tags: ["site:git"], args: { A: "1" } });
    expect(body.source).toEqual({ ...source, commit: null, digest: null, sizeBytes: null });
    const [row] = await api.database.owner<{ request: object }[]>`select request from builds where id = ${body.id}`;
    expect(row?.request).toMatchObject({
      source,
      dockerfile: "Dockerfile",
      noCache: false,
      limits: { cpus: 2, memory: 2 * 2 ** 30, timeoutSeconds: 60 },
    });
    expect((await call<Build>("POST", "/v1/builds", asked, { "idempotency-key": "git" })).body.id).toBe(body.id);
    const other = await call("POST", "/v1/builds", { source: { git } }, { "idempotency-key": "git" });
    expect(other).toMatchObject({ status: 409, body: { code: "idempotency_key_reused" } });
  });

  test("named contexts are checked, kept and shown, from the query and from a body", async () => {
    const address = "https://git.example/lib.git#v1:src";
    const contexts = { base: "docker-image://debian:12", lib: address };
    const query = Object.entries(contexts).map(([name, text]) => `context=${encodeURIComponent(`${name}=${text}`)}`);
    expect(await upload(`?${query.join("&")}`, "tar")).toMatchObject({ status: 202, body: { contexts, warnings: [] } });
    const source = { git: { url: "https://git.example/x.git" } };
    expect(await call("POST", "/v1/builds", { source, contexts })).toMatchObject({ status: 202, body: { contexts } });
    expect(await upload("?context=base%3Doci-layout%3A%2F%2Fx", "tar")).toMatchObject({ status: 400 });
  });

  test("a tar's URL is kept with its checksum", async () => {
    const tar = { url: "https://h.example/x.tar.gz", checksum: `sha256:${"1".repeat(64)}` };
    const { status, body } = await call<Build>("POST", "/v1/builds", { source: { tar } });
    expect(status).toBe(202);
    expect(body.source).toEqual({ kind: "tar", ...tar, digest: null, sizeBytes: null });
  });

  const url = "https://git.example/x.git";
  test.each<[object, string]>([
    [{}, "/source"],
    [{ source: {} }, "/source/git"],
    [{ source: { git: {} } }, "/source/git/url"],
    [{ source: { git: { url: "ssh://git@git.example/x" } } }, "/source/git/url"],
    [{ source: { git: { url: "git@git.example:x.git" } } }, "/source/git/url"],
    [{ source: { git: { url: "file:///etc" } } }, "/source/git/url"],
    [{ source: { git: { url: "ext::sh -c id" } } }, "/source/git/url"],
    [{ source: { git: { url: "https://user:hunter2@git.example/x" } } }, "/source/git/url"],
    [{ source: { git: { url, ref: "--upload-pack=id" } } }, "/source/git/ref"],
    [{ source: { git: { url, ref: "a:b" } } }, "/source/git/ref"],
    [{ source: { git: { url, subdirectory: "a/../.." } } }, "/source/git/subdirectory"],
    [{ source: { git: { url, submodules: true } } }, "/source/git/submodules"],
    [{ source: { git: { url } }, dockerfile: "/etc/passwd" }, "/dockerfile"],
    [{ source: { git: { url } }, args: { "1": "x" } }, "/args/1"],
    [{ source: { git: { url } }, secret: {} }, "/secret"],
    [{ source: { git: { url } }, contexts: { a: "file:///etc" } }, "/contexts/a"],
    [{ source: { git: { url }, tar: { url } } }, "/source/git"],
    [{ source: { tar: { url: "https://user:hunter2@h.example/x.tar" } } }, "/source/tar/url"],
    [{ source: { tar: { url: "file:///etc/passwd" } } }, "/source/tar/url"],
    [{ source: { tar: { url, checksum: "md5:1" } } }, "/source/tar/checksum"],
    [{ source: { git: { url } }, contexts: { a: "https://user:hunter2@h.example/x.tar" } }, "/contexts/a"],
    [{ source: { git: { url } }, contexts: { "../a": "docker-image://x" } }, "/contexts/..~1a"],
    [{ source: { git: { url } }, limits: { cpus: 0 } }, "/limits/cpus"],
  ])("%o is 400, and the place is named", async (body, pointer) => {
    const answer = await call("POST", "/v1/builds", body);
    expect(answer).toMatchObject({ status: 400, body: { code: "invalid_request" } });
    expect(answer.body.errors?.map((error) => error.pointer)).toContain(pointer);
    expect(JSON.stringify(answer.body) + api.logged.join("")).not.toContain("hunter2");
  });

  test("options have one place, and other bodies say what is supported", async () => {
    const both = await call("POST", "/v1/builds?tag=x:1", { source: { git: { url } } });
    expect(both).toMatchObject({ status: 400, body: { errors: [{ pointer: "query/tag" }] } });
    const form = await upload("", "x", { "content-type": "application/x-www-form-urlencoded" });
    expect(form).toMatchObject({ status: 415 });
    expect(form.body.detail).toContain("application/x-tar");
  });

  test("the log can be followed to the build's end and resumed", async () => {
    const { body } = await upload("?tag=log:1", "with a log");
    const { owner } = api.database;
    const line = async (seq: number, text: string) => {
      await owner`insert into build_logs (build_id, project_id, seq, step, stream, text) values (${body.id}, ${project.id}, ${seq}, 1, 'stdout', ${text})`;
      await owner`select pg_notify('berth', ${body.id})`;
    };
    await line(1, "one");
    const following = api.app.request(`/v1/builds/${body.id}/logs?follow=true`, {
      headers: { authorization: `Bearer ${project.tokens.viewer}` },
    });
    const text = (await following).text();
    await line(2, "two");
    await owner`insert into build_logs (build_id, project_id, seq, step, stream, text) values (${body.id}, ${project.id}, 3, 1, 'stdout', 'three')`;
    await owner`update builds set status = 'succeeded' where id = ${body.id}`;
    await owner`select pg_notify('berth', ${body.id})`;
    expect(await text).toBe("one\ntwo\nthree\n");
    const resumed = await api.app.request(`/v1/builds/${body.id}/logs`, {
      headers: { authorization: `Bearer ${project.tokens.viewer}`, accept: "text/event-stream", "last-event-id": "2" },
    });
    expect((await resumed.text()).match(/^(id|event): .*$/gm)).toEqual(["id: 3", "event: log"]);
  });

  test("a queued build is cancelled at once, a running one is asked to end", async () => {
    const queued = (await upload("?tag=c:1", "c1")).body;
    expect(await call("POST", `/v1/builds/${queued.id}/cancel`)).toMatchObject({
      status: 200,
      body: { status: "cancelled" },
    });
    const running = (await upload("?tag=c:2", "c2")).body;
    await api.database.owner`update jobs set status = 'running' where id = ${running.jobId}`;
    await api.database.owner`update builds set status = 'running' where id = ${running.id}`;
    expect(await call("POST", `/v1/builds/${running.id}/cancel`)).toMatchObject({
      status: 202,
      body: { status: "running" },
    });
    expect(await call("GET", `/v1/jobs/${running.jobId}`)).toMatchObject({
      body: { cancelRequested: true, subjectId: running.id },
    });
  });
});

describe("images", () => {
  beforeAll(async () => {
    await addImage("d", ["site", "1"], ["site", "stable"]);
    await addImage("e", ["docker.io/library/debian", "12"], ["docker.io/library/old", `@${digest("e")}`]);
  });
  const get = (reference: string) =>
    call<{ digest: string; tags: string[]; reference: string } & Problem>(
      "GET",
      `/v1/images/${encodeURIComponent(reference)}`,
    );

  test("are found by tag, by digest, with the project's name, and by Docker Hub's short name", async () => {
    for (const name of ["site:1", "acme/site:1", digest("d")]) expect((await get(name)).body.digest).toBe(digest("d"));
    expect((await get("debian:12")).body).toMatchObject({
      reference: "docker.io/library/debian:12",
      digest: digest("e"),
    });
    expect((await get("docker.io/library/debian:12")).status).toBe(200);
    expect((await get("site:2")).body.code).toBe("image_not_found");
    expect((await get(digest("e"))).body.tags).toEqual([
      "docker.io/library/debian:12",
      `docker.io/library/old@${digest("e")}`,
    ]);
  });

  test("are tagged and listed", async () => {
    expect(await call("POST", "/v1/images/tag", { source: "debian:12", target: "base:1" })).toMatchObject({
      status: 201,
      body: { reference: "base:1" },
    });
    expect((await get("base:1")).body.digest).toBe(digest("e"));
    expect(await call("POST", "/v1/images/tag", { source: "nope:1", target: "x:1" })).toMatchObject({
      status: 404,
      body: { code: "image_not_found" },
    });
    expect(await call("POST", "/v1/images/tag", { source: "site:1", target: "ghcr.io/x:1" })).toMatchObject({
      status: 400,
      body: { code: "invalid_reference" },
    });
    const listed = await call<{ items: { digest: string }[] }>("GET", "/v1/images?label=of%3Dd");
    expect(listed.body.items.map((item) => item.digest)).toEqual([digest("d")]);
  });

  test("go with their last name, unless a container needs them", async () => {
    expect((await call("DELETE", "/v1/images/site%3Astable")).body).toEqual({
      untagged: ["site:stable"],
      deleted: null,
    });
    await call("POST", "/v1/containers", { image: "site:1", name: "user" });
    const used = await call("DELETE", "/v1/images/site%3A1");
    expect(used).toMatchObject({ status: 409, body: { code: "image_in_use" } });
    expect(used.body.detail).toContain("user");
    expect((await get("site:1")).status).toBe(200);
    await api.database.owner`delete from containers where project_id = ${project.id}`;
    expect((await call("DELETE", "/v1/images/site%3A1")).body).toEqual({ untagged: ["site:1"], deleted: digest("d") });
    expect((await get(digest("d"))).status).toBe(404);
  });

  test("a pull is a job whose credentials are kept sealed", async () => {
    const auth = { username: "u", password: "hunter2" };
    const { status, body } = await call<{ id: string }>("POST", "/v1/images/pull", { reference: "nginx", auth });
    expect(status).toBe(202);
    const [job] = await api.database.owner<
      { payload: { reference: string; auth: string } }[]
    >`select payload from jobs where id = ${body.id}`;
    expect(job?.payload.reference).toBe("docker.io/library/nginx:latest");
    expect(JSON.stringify(job)).not.toContain("hunter2");
    expect(JSON.parse(open(api.services.secretKey, `pull:${body.id}`, job?.payload.auth ?? ""))).toEqual(auth);
    expect(api.logged.join("")).not.toContain("hunter2");
    expect(await call("POST", "/v1/images/pull", { reference: "base:1" })).toMatchObject({
      status: 400,
      body: { code: "invalid_reference" },
    });
  });
});

describe("ports", () => {
  interface Port {
    id: string;
    hostPort: number;
    status: string;
    endpoint: string;
  }
  let container: string;
  beforeAll(async () => {
    container = (await call<{ id: string }>("POST", "/v1/containers", { image: "debian:12", name: "web" })).body.id;
    await api.database
      .owner`update containers set status = 'running', seen_rev = wanted_rev, run = 1 where id = ${container}`;
  });
  const publish = (more: object, headers?: Record<string, string>) =>
    call<Port & Problem>("POST", "/v1/ports", { containerId: "web", containerPort: 80, ...more }, headers);

  test("are given, or the lowest free one; taken is 409; all taken is 409", async () => {
    expect(await publish({ hostPort: 8001 })).toMatchObject({
      status: 202,
      body: { hostPort: 8001, status: "pending", endpoint: "127.0.0.1:8001" },
    });
    expect((await publish({})).body.hostPort).toBe(8000);
    expect((await publish({})).body.hostPort).toBe(8002);
    const taken = await publish({ hostPort: 8001 });
    expect(taken).toMatchObject({ status: 409, body: { code: "port_taken", facts: { hostPort: 8001 } } });
    expect(taken.body.detail).toContain("web");
    expect((await publish({ hostPort: 8001, hostAddress: "127.0.0.1" })).body.code).toBe("port_taken");
    expect((await publish({ hostPort: 8001, protocol: "udp" })).status).toBe(202);
    expect((await publish({})).body.hostPort).toBe(8003);
    expect((await publish({})).body.code).toBe("ports_exhausted");
    expect((await publish({ hostPort: 7070 })).body.code).toBe("port_taken");
  });

  test("wait until the host has applied them, or refused", async () => {
    const { owner } = api.database;
    const waiting = publish({ hostPort: 9100 }, { prefer: "wait=20" });
    const id = async () => (await owner<{ id: string }[]>`select id from ports where host_port = 9100`)[0]?.id ?? "";
    await expect.poll(id).toMatch(/^prt_/);
    await owner`update ports set status = 'active' where id = ${await id()}`;
    await owner`select pg_notify('berth', ${await id()})`;
    expect(await waiting).toMatchObject({ status: 201, body: { status: "active" } });

    const refused = publish({ hostPort: 9101 }, { prefer: "wait=20" });
    const other = async () => (await owner<{ id: string }[]>`select id from ports where host_port = 9101`)[0]?.id ?? "";
    await expect.poll(other).toMatch(/^prt_/);
    const gone = await other();
    await owner`insert into events (project_id, type, subject_id, data)
      values (${project.id}, 'port.refused', ${gone}, '{"detail": "nginx uses the port 9101."}')`;
    await owner`delete from ports where id = ${gone}`;
    await owner`select pg_notify('berth', ${gone})`;
    expect(await refused).toMatchObject({
      status: 409,
      body: { code: "host_port_in_use", detail: "nginx uses the port 9101." },
    });
  });

  test("are listed and taken away when the host is done", async () => {
    const listed = await call<{ items: Port[] }>("GET", "/v1/ports?containerId=web&hostPort=9100");
    const id = listed.body.items[0]?.id ?? "";
    expect(await call("DELETE", `/v1/ports/${id}`)).toMatchObject({ status: 202, body: { status: "removing" } });
    const [row] = await api.database.owner<
      { behind: boolean }[]
    >`select wanted_rev > seen_rev as behind from containers where id = ${container}`;
    expect(row?.behind).toBe(true);
    await api.database.owner`delete from ports where id = ${id}`;
    expect((await call("GET", `/v1/ports/${id}`)).status).toBe(404);
  });
});

describe("projects", () => {
  const asOperator = <T = Problem>(
    method: string,
    path: string,
    body?: unknown,
    headers: Record<string, string> = {},
  ) => ask<T>(api.app, api.operator, method, path, body, { "berth-project": project.id, ...headers });

  test("the operator makes them, and their first token works at once", async () => {
    const made = await asOperator<{ id: string }>("POST", "/v1/projects", { name: "fresh" });
    expect(made.status).toBe(201);
    expect(await asOperator("POST", "/v1/projects", { name: "fresh" })).toMatchObject({
      status: 409,
      body: { code: "name_taken" },
    });
    expect(await asOperator("POST", "/v1/projects", { name: "docker.io" })).toMatchObject({ status: 400 });
    expect(await asOperator("POST", "/v1/projects", { name: "localhost" })).toMatchObject({ status: 409 });
    const key = { "idempotency-key": "token-1" };
    const first = await asOperator<{ token: string }>(
      "POST",
      `/v1/projects/${made.body.id}/tokens`,
      { role: "admin" },
      key,
    );
    const again = await asOperator<{ token: string }>(
      "POST",
      `/v1/projects/${made.body.id}/tokens`,
      { role: "admin" },
      key,
    );
    expect(again.body).toEqual(first.body);
    expect((await ask(api.app, first.body.token, "GET", "/v1/containers")).status).toBe(200);
    const kept = await api.database.owner<{ response: unknown }[]>`select response from idempotency_keys`;
    expect(JSON.stringify(kept)).not.toContain(first.body.token);
    expect(
      (await asOperator<{ items: { name: string }[] }>("GET", "/v1/projects")).body.items.map(({ name }) => name),
    ).toContain("fresh");
  });

  test("an admin gives tokens of its project only, and none is shown twice", async () => {
    const { admin } = project.tokens;
    const path = `/v1/projects/${project.id}/tokens`;
    const made = await ask<{ id: string; token: string }>(api.app, admin, "POST", path, { role: "viewer", name: "ci" });
    expect(made.status).toBe(201);
    expect(await ask<Problem>(api.app, admin, "POST", path, { role: "operator" })).toMatchObject({ status: 400 });
    const listed = await ask<{ items: { name: string }[] }>(api.app, admin, "GET", path);
    expect(JSON.stringify(listed.body)).not.toContain(made.body.token);
    expect(listed.body.items.map(({ name }) => name)).toContain("ci");
    expect((await ask(api.app, made.body.token, "GET", "/v1/containers")).status).toBe(200);
    expect((await ask(api.app, admin, "DELETE", `${path}/${made.body.id}`)).status).toBe(204);
    expect((await ask(api.app, made.body.token, "GET", "/v1/containers")).status).toBe(401);
  });

  test("a quota bounds what is created, and is counted", async () => {
    const small = await api.project("small");
    const own = <T = Problem>(method: string, path: string, body?: unknown) =>
      ask<T>(api.app, small.tokens.deployer, method, path, body);
    await ask(
      api.app,
      api.operator,
      "PATCH",
      `/v1/projects/${small.id}/quota`,
      { containers: 2, ports: 1, memory: 300_000_000 },
      { "berth-project": small.id },
    );
    const one = { image: "debian:12", resources: { memory: 100_000_000 } };
    expect(
      (await own("POST", "/v1/containers", { ...one, ports: [{ containerPort: 1, hostPort: 9201 }] })).status,
    ).toBe(202);
    expect(
      (await own("POST", "/v1/containers", { ...one, ports: [{ containerPort: 1, hostPort: 9202 }] })).body,
    ).toMatchObject({
      code: "quota_exceeded",
      facts: { resource: "ports", limit: 1, used: 1, asked: 1 },
    });
    expect(
      (await own("POST", "/v1/containers", { image: "debian:12", resources: { memory: 250_000_000 } })).body,
    ).toMatchObject({
      code: "quota_exceeded",
      facts: { resource: "memory" },
    });
    const many = await Promise.all(Array.from({ length: 5 }, () => own("POST", "/v1/containers", one)));
    expect(many.map(({ status }) => status).sort()).toEqual([202, 409, 409, 409, 409]);
    expect((await own<object>("GET", `/v1/projects/${small.id}/usage`)).body).toMatchObject({
      containers: 2,
      memory: 200_000_000,
      ports: 1,
    });
    expect((await own<object>("GET", `/v1/projects/small/quota`)).body).toMatchObject({ containers: 2, ports: 1 });
  });
});

describe("hosts", () => {
  const asOperator = <T>(method: string, path: string) =>
    ask<T>(api.app, api.operator, method, path, undefined, { "berth-project": project.id });

  test("are listed, drained and taken into use again; why nothing fits is said", async () => {
    const { body } = await asOperator<{
      items: { id: string; name: string; state: string; used: { containers: number } }[];
    }>("GET", "/v1/hosts");
    const host = body.items[0];
    expect(host).toMatchObject({ state: "ready" });
    expect(host?.used.containers).toBeGreaterThan(0);
    expect(await asOperator("POST", `/v1/hosts/${host?.id ?? ""}/drain`)).toMatchObject({
      status: 200,
      body: { state: "draining" },
    });
    const refused = await call("POST", "/v1/containers", { image: "debian:12" });
    expect(refused).toMatchObject({
      status: 409,
      body: { code: "no_capacity", detail: `No host has room: ${host?.name ?? ""} is draining.` },
    });
    expect(await asOperator("POST", `/v1/hosts/${host?.id ?? ""}/activate`)).toMatchObject({
      body: { state: "ready" },
    });
    const large = await call("POST", "/v1/containers", { image: "debian:12", resources: { memory: 64 * 2 ** 30 } });
    expect(large.body.detail).toContain("has 8.0 GiB of memory, and 64.0 GiB is asked");
  });
});

describe("the service", () => {
  test("tells its state, its measurements and its document without a token", async () => {
    expect(await ask(api.app, null, "GET", "/healthz")).toMatchObject({ status: 200, body: { status: "ok" } });
    expect(await ask(api.app, null, "GET", "/readyz")).toMatchObject({
      status: 200,
      body: { status: "ready", hosts: 1 },
    });
    const metrics = await (await api.app.request("/metrics")).text();
    expect(metrics).toContain('berth_http_request_seconds_count{method="GET",route="/healthz",status="200"} 1');
    expect(metrics).not.toContain("ctr_");
    expect(await ask(api.app, null, "GET", "/openapi.json")).toMatchObject({ status: 200, body: { openapi: "3.1.0" } });
    expect(await (await api.app.request("/docs")).text()).toContain("createContainer");
  });

  test("origins that are listed may call it from a browser", async () => {
    const preflight = (origin: string) =>
      api.app.request("/v1/containers", {
        method: "OPTIONS",
        headers: { origin, "access-control-request-method": "POST" },
      });
    expect((await preflight("https://console.example")).headers.get("access-control-allow-origin")).toBe(
      "https://console.example",
    );
    expect((await preflight("https://evil.example")).headers.get("access-control-allow-origin")).toBeNull();
  });
});
