import { afterAll, beforeAll, describe, expect, inject, onTestFinished, test, vi } from "vitest";
import { ask, createApi, type Problem, type TestApi, type TestProject } from "../support/api.ts";

interface Container {
  id: string;
  name: string;
  status: string;
  image: { reference: string; digest: string | null };
  ports: { hostPort: number; status: string; endpoint: string }[];
  env?: Record<string, string>;
  exitCode: number | null;
  labels: Record<string, string>;
}

let api: TestApi;
let project: TestProject;
let hostId: string;
const digest = `sha256:${"a".repeat(64)}`;

const post = <T = Container & Problem>(path: string, body?: unknown, headers?: Record<string, string>) =>
  ask<T>(api.app, project.tokens.deployer, "POST", path, body, headers);
const get = <T = Container & Problem>(path: string) => ask<T>(api.app, project.tokens.deployer, "GET", path);

/** What the host's worker would write, and its wake-up. */
async function seen(id: string, change: { status: string; exitCode?: number; run?: boolean }) {
  await api.database.owner`
    update containers set status = ${change.status}, seen_rev = wanted_rev, exit_code = ${change.exitCode ?? null},
      run = wanted_run where id = ${id}`;
  await api.database.owner`select pg_notify('berth', ${id})`;
}

beforeAll(async () => {
  api = await createApi(inject("postgresSocketDir"));
  project = await api.project("acme");
  hostId = await api.host();
  const { owner } = api.database;
  await owner`insert into images (project_id, digest, media_type, manifest, config, layers, size_bytes)
    values (${project.id}, ${digest}, 'm', '{}', ${JSON.stringify({ architecture: "amd64", os: "linux", config: { ExposedPorts: { "80/tcp": {}, "53/udp": {} } }, rootfs: {} })}::text::jsonb, '[]', 10)`;
  await owner`insert into tags (project_id, repository, tag, digest) values (${project.id}, 'web', '1', ${digest})`;
});
afterAll(() => api.close());

describe("creating", () => {
  test("answers 202 with the container on its way, and wakes its host", async () => {
    let woken = 0;
    const unsubscribe = api.services.wakeups.subscribe(`host:${hostId}`, () => woken++);
    const { status, body, headers } = await post("/v1/containers", {
      image: "web:1",
      name: "first",
      env: { A: "1" },
      ports: [{ containerPort: 80, hostPort: 9000 }, { containerPort: 81 }],
    });
    expect({ status, body }).toMatchObject({
      status: 202,
      body: { name: "first", status: "starting", image: { reference: "web:1", digest }, env: { A: "1" } },
    });
    expect(body.ports.map((port) => port.endpoint).sort()).toEqual(["127.0.0.1:8000", "127.0.0.1:9000"]);
    expect(headers.get("location")).toBe(`/v1/containers/${body.id}`);
    await expect.poll(() => woken).toBe(1);
    unsubscribe();
    expect((await get("/v1/containers/first")).body.id).toBe(body.id);
  });

  test("Prefer: wait holds the answer until it has settled, and no longer than said", async () => {
    const asked = post("/v1/containers", { image: "web:1", name: "waited" }, { prefer: "wait=20" });
    const id = await expect
      .poll(async () => (await get("/v1/containers/waited")).body.id, { timeout: 5_000 })
      .toMatch(/^ctr_/)
      .then(async () => (await get("/v1/containers/waited")).body.id);
    await seen(id, { status: "running" });
    expect(await asked).toMatchObject({ status: 201, body: { status: "running" } });
    const late = await post("/v1/containers", { image: "web:1" }, { prefer: "wait=1" });
    expect(late).toMatchObject({ status: 202, body: { status: "starting" } });
    expect(late.body.name).toMatch(/^web-[0-9a-z]{6}$/);
  });

  test("a taken port is 409, names its holder only to the same project, and starts nothing", async () => {
    const taken = { image: "web:1", name: "loser", ports: [{ containerPort: 80, hostPort: 9000 }] };
    const mine = await post("/v1/containers", taken);
    expect(mine).toMatchObject({
      status: 409,
      body: { code: "port_taken", facts: { hostPort: 9000, protocol: "tcp" } },
    });
    expect(mine.body.detail).toBe("Host port 9000/tcp is taken by the container first.");
    const other = await api.project("other-port");
    const theirs = await ask<Problem>(api.app, other.tokens.deployer, "POST", "/v1/containers", {
      ...taken,
      image: "debian",
    });
    expect(theirs.body).toMatchObject({ code: "port_taken", detail: "Host port 9000/tcp is taken." });
    expect((await get<Problem>("/v1/containers/loser")).body.code).toBe("not_found");
  });

  test("a port that the operator reserves is 409 and never given automatically", async () => {
    const reserved = await post("/v1/containers", { image: "web:1", ports: [{ containerPort: 80, hostPort: 7070 }] });
    expect(reserved).toMatchObject({ status: 409, body: { code: "port_taken" } });
  });

  test("a name that is taken is 409", async () => {
    expect(await post("/v1/containers", { image: "web:1", name: "first" })).toMatchObject({
      status: 409,
      body: { code: "name_taken" },
    });
  });

  test("the project's own repository is never Docker Hub's", async () => {
    expect(await post("/v1/containers", { image: "web:2" })).toMatchObject({
      status: 404,
      body: { code: "image_not_found" },
    });
    expect((await post("/v1/containers", { image: "acme/web:1" })).body.image).toEqual({ reference: "web:1", digest });
    expect((await post("/v1/containers", { image: "debian:12", start: false })).body).toMatchObject({
      status: "created",
      image: { reference: "docker.io/library/debian:12", digest: null },
    });
    expect((await post("/v1/containers", { image: "debian:13", pull: "never" })).body.code).toBe("image_not_found");
    expect((await post("/v1/containers", { image: digest })).body.image.digest).toBe(digest);
  });

  test("publishAll publishes what the image exposes", async () => {
    const { body } = await post("/v1/containers", { image: "web:1", publishAll: true, ports: [{ containerPort: 80 }] });
    expect(body.ports).toHaveLength(2);
  });

  test("the same Idempotency-Key does it once, with another body it is 409", async () => {
    const headers = { "idempotency-key": "once-1" };
    const [a, b] = await Promise.all([
      post("/v1/containers", { image: "web:1", name: "once" }, headers),
      post("/v1/containers", { image: "web:1", name: "once" }, headers),
    ]);
    expect([a.status, b.status]).toEqual([202, 202]);
    expect(a.body).toEqual(b.body);
    expect(await post("/v1/containers", { image: "web:1", name: "twice" }, headers)).toMatchObject({
      status: 409,
      body: { code: "idempotency_key_reused" },
    });
    const events = await get<{ items: { data: { name?: string } }[] }>("/v1/events?type=container.created&limit=500");
    expect(events.body.items.filter((event) => event.data.name === "once")).toHaveLength(1);
  });

  test("many at a time get different automatic ports", async () => {
    const made = await Promise.all(
      Array.from({ length: 12 }, () =>
        post("/v1/containers", { image: "web:1", ports: [{ containerPort: 80 }, { containerPort: 81 }] }),
      ),
    );
    const ports = made.flatMap(({ body }) => body.ports.map((port) => port.hostPort));
    expect(new Set(ports).size).toBe(24);
  });
});

describe("changing", () => {
  test("start, stop, restart and kill only change what is wanted, and say what is under way", async () => {
    const { id } = (await post("/v1/containers", { image: "web:1", name: "acts" })).body;
    await seen(id, { status: "running" });
    expect(await post("/v1/containers/acts/start")).toMatchObject({ status: 200, body: { status: "running" } });
    expect(await post("/v1/containers/acts/restart")).toMatchObject({ status: 202, body: { status: "restarting" } });
    await seen(id, { status: "running" });
    expect(await post("/v1/containers/acts/kill", { signal: "hup" })).toMatchObject({
      status: 202,
      body: { status: "running" },
    });
    const [row] = await api.database.owner<{ signals: number[] }[]>`select signals from containers where id = ${id}`;
    expect(row?.signals).toEqual([1]);
    expect(await post("/v1/containers/acts/stop")).toMatchObject({ status: 202, body: { status: "stopping" } });
    await seen(id, { status: "stopping" });
    expect(await post("/v1/containers/acts/kill")).toMatchObject({ status: 202, body: { status: "stopping" } });
    await seen(id, { status: "exited", exitCode: 0 });
    expect(await post("/v1/containers/acts/stop")).toMatchObject({ status: 200, body: { status: "exited" } });
    expect(await post("/v1/containers/acts/kill")).toMatchObject({ status: 409, body: { code: "invalid_state" } });
    expect(await post("/v1/containers/acts/start")).toMatchObject({ status: 202, body: { status: "starting" } });
    await seen(id, { status: "running" });
    expect(await post("/v1/containers/acts/kill")).toMatchObject({ status: 202, body: { status: "stopping" } });
    expect(await api.database.owner`select wanted, signals from containers where id = ${id}`).toMatchObject([
      { wanted: "stopped", signals: [1, 9, 9] },
    ]);
  });

  test("kill needs no body, also of a client whose request has an empty one", async () => {
    const { id } = (await post("/v1/containers", { image: "web:1", name: "bodiless" })).body;
    await seen(id, { status: "running" });
    const kill = (headers: Record<string, string>) =>
      api.app.request("/v1/containers/bodiless/kill", {
        method: "POST",
        headers: { authorization: `Bearer ${project.tokens.deployer}`, ...headers },
        body: new Blob([]).stream(),
        duplex: "half",
      });
    expect((await kill({})).status).toBe(202);
    expect((await kill({ "content-type": "application/json" })).status).toBe(202);
    expect((await kill({ "content-type": "text/plain" })).status).toBe(415);
  });

  test("wait answers when it has ended, also when it is removed meanwhile", async () => {
    const { id } = (await post("/v1/containers", { image: "web:1", name: "ends", autoRemove: true })).body;
    await seen(id, { status: "running" });
    expect((await post("/v1/containers/ends/wait?timeoutSeconds=0")).status).toBe(202);
    const subscribed = vi.spyOn(api.services.wakeups, "subscribe");
    onTestFinished(() => subscribed.mockRestore());
    const waiting = post("/v1/containers/ends/wait?timeoutSeconds=20");
    // It has found the container then.
    await expect.poll(() => subscribed.mock.calls.length).toBeGreaterThan(0);
    const { owner } = api.database;
    await owner`insert into events (project_id, type, subject_id, data) values (${project.id}, 'container.exited', ${id}, '{"exitCode": 7}')`;
    await owner`delete from containers where id = ${id}`;
    await owner`select pg_notify('berth', ${id})`;
    expect(await waiting).toMatchObject({ status: 200, body: { status: "exited", exitCode: 7 } });
  });

  test("a running container is removed by force only; the row goes when the host is done", async () => {
    const { id } = (await post("/v1/containers", { image: "web:1", name: "goes" })).body;
    await seen(id, { status: "running" });
    const { deployer } = project.tokens;
    expect(await ask(api.app, deployer, "DELETE", "/v1/containers/goes")).toMatchObject({
      status: 409,
      body: { code: "invalid_state" },
    });
    const removing = ask(api.app, deployer, "DELETE", "/v1/containers/goes?force=true", undefined, {
      prefer: "wait=20",
    });
    await expect.poll(async () => (await get("/v1/containers/goes")).body.status).toBe("removing");
    await api.database.owner`delete from containers where id = ${id}`;
    await api.database.owner`select pg_notify('berth', ${id})`;
    expect((await removing).status).toBe(204);
    expect((await get<Problem>("/v1/containers/goes")).body.code).toBe("not_found");
  });

  test("PATCH changes name, labels and restart policy", async () => {
    const { id } = (await post("/v1/containers", { image: "web:1", name: "old-name" })).body;
    const patched = await ask<Container>(api.app, project.tokens.deployer, "PATCH", `/v1/containers/${id}`, {
      name: "new-name",
      labels: { tier: "web" },
      restartPolicy: { name: "always" },
    });
    expect(patched).toMatchObject({
      status: 200,
      body: { name: "new-name", labels: { tier: "web" }, restartPolicy: { name: "always", maxAttempts: 0 } },
    });
    expect((await post("/v1/containers", { image: "web:1", name: "old-name" })).status).toBe(202);
  });
});

describe("listing", () => {
  test("pages through all, newest first, and filters", async () => {
    const names: string[] = [];
    let cursor: string | null = "";
    while (cursor !== null) {
      const path: string = `/v1/containers?limit=7${cursor === "" ? "" : `&cursor=${cursor}`}`;
      const { body } = await get<{ items: Container[]; nextCursor: string | null }>(path);
      names.push(...body.items.map((item) => item.name));
      cursor = body.nextCursor;
    }
    const [total] = await api.database.owner<
      { n: number }[]
    >`select count(*)::int n from containers where project_id = ${project.id}`;
    expect(names.length).toBe(total?.n);
    expect(new Set(names).size).toBe(names.length);
    const labelled = await get<{ items: Container[] }>("/v1/containers?label=tier%3Dweb");
    expect(labelled.body.items.map((item) => item.name)).toEqual(["new-name"]);
    const starting = await get<{ items: Container[] }>("/v1/containers?status=starting&limit=500");
    expect(starting.body.items.length).toBeGreaterThan(0);
    expect(starting.body.items.every((item) => item.status === "starting")).toBe(true);
  });

  test("viewers don't see the environment", async () => {
    const { body } = await ask<Container>(api.app, project.tokens.viewer, "GET", "/v1/containers/first");
    expect(body.env).toBeUndefined();
  });
});
