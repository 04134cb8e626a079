import { createHash, randomBytes } from "node:crypto";
import { once } from "node:events";
import { get as httpGet } from "node:http";
import { createServer } from "node:net";
import { Readable } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";
import type { z } from "@hono/zod-openapi";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import type { DeployTemplate } from "../../src/core/deploy.ts";
import { newId } from "../../src/core/ids.ts";
import { transact } from "../../src/db/scope.ts";
import { buildHead } from "../../src/db/source-builds.ts";
import { topics } from "../../src/db/wakeups.ts";
import { writeTar } from "../../src/image/tar-write.ts";
import { Deploy, deployTemplate } from "../../src/routes/container-template.ts";
import { DrivenHost } from "../support/driven-host.ts";
import { collect, entry } from "../support/image.ts";

// A source's builds become one container after the other behind the same port, while clients keep connecting to it.

interface Deployment {
  id: string;
  jobId: string;
  status: string;
  containerId: string | null;
  previousContainerId: string | null;
  reason: string | null;
  detail: string | null;
  ports: { hostPort: number; status: string }[];
}
interface Container {
  id: string;
  name: string;
  status: string;
  health: string | null;
}

let host: DrivenHost;

beforeAll(async () => {
  host = await DrivenHost.create(inject("postgresSocketDir"));
  await host.start();
  await host.buildBusybox("box:1");
});
afterAll(() => host.destroy());

const serve = (text: string) => `mkdir -p /www; echo ${text} > /www/index.html; exec httpd -f -p 8080 -h /www`;

/** A source of the test that is built by what a push would build. */
async function source(name: string, deploy: Partial<z.input<typeof Deploy>> = {}) {
  const id = newId("source");
  const template: DeployTemplate = deployTemplate(Deploy.parse({ ports: [{ containerPort: 8080 }], ...deploy }));
  await host.api.database.owner`
    insert into sources (id, project_id, name, provider, build, deploy, secret_sealed)
    values (${id}, ${host.project.id}, ${name}, 'berth', '{}', ${JSON.stringify(template)}::text::jsonb, '')`;
  /** Builds a version that runs this shell script, and returns its build's id. */
  const build = async (script: string): Promise<string> => {
    const dockerfile = `FROM box:1\nENV VERSION=${randomBytes(4).toString("hex")}\nCMD ["/bin/sh", "-c", ${JSON.stringify(script)}]\n`;
    const tar = await collect(writeTar([entry("Dockerfile", { content: dockerfile })]));
    const { digest, sizeBytes } = await host.api.services.blobs.put(Readable.from([tar]), { maxBytes: 1 << 20 });
    const commit = createHash("sha1").update(tar).digest("hex");
    const url = `/git/default/${name}.git`;
    const context = { kind: "git" as const, url, ref: "main", subdirectory: null, commit, digest, sizeBytes };
    const asked = {
      dockerfile: "Dockerfile",
      args: {},
      tags: [`${name}:main`],
      labels: {},
      noCache: false,
      pull: false,
      limits: { cpus: 2, memory: 2 ** 30, timeoutSeconds: 120 },
    };
    const { buildId } = await transact(host.api.services.sql, { projectId: host.project.id }, (tx) =>
      buildHead(
        tx,
        { id, projectId: host.project.id, build: asked },
        { ref: "refs/heads/main", context, job: { id: newId("job"), payload: {} } },
      ),
    );
    return buildId ?? "";
  };
  const deployed = async (buildId: string): Promise<Deployment> => {
    const built = await host.ask<{ status: string; error: unknown }>("GET", `/v1/builds/${buildId}`, undefined, {
      prefer: "wait=60",
    });
    expect(built.body.status, JSON.stringify(built.body.error)).toBe("succeeded");
    const { body } = await host.ask<{ items: Deployment[] }>("GET", `/v1/deployments?buildId=${buildId}`);
    const [found] = body.items;
    if (found === undefined) throw new Error("the build was not deployed");
    return found;
  };
  const settled = async (buildId: string): Promise<Deployment> => {
    const { id: deployment } = await deployed(buildId);
    return (await host.ask<Deployment>("GET", `/v1/deployments/${deployment}`, undefined, { prefer: "wait=100" })).body;
  };
  const push = async (script: string) => settled(await build(script));
  return { id, name, build, deployed, settled, push };
}

const containers = async () => (await host.ask<{ items: Container[] }>("GET", "/v1/containers")).body.items;
const find = async (idOrName: string) => (await host.ask<Container>("GET", `/v1/containers/${idOrName}`)).body;

/** One request on a connection of its own. */
function ask(port: number): Promise<string> {
  return new Promise((resolve, reject) => {
    const request = httpGet({ host: "127.0.0.1", port, agent: false, timeout: 5000 }, (response) => {
      let text = "";
      response.setEncoding("utf8");
      response.on("data", (part: string) => (text += part));
      response.on("end", () => resolve(text.trim()));
      response.on("error", reject);
    });
    request.on("timeout", () => request.destroy(new Error("no answer")));
    request.on("error", reject);
  });
}

/** Clients that keep connecting to a port until `stop`; it answers what they got, and what went wrong. */
function clients(port: number, n = 3) {
  const answers = new Map<string, number>();
  const failures: string[] = [];
  let going = true;
  const loops = Array.from({ length: n }, async () => {
    while (going) {
      await ask(port).then(
        (text) => answers.set(text, (answers.get(text) ?? 0) + 1),
        (error: unknown) => failures.push(String(error)),
      );
    }
  });
  return {
    answers,
    stop: async () => {
      going = false;
      await Promise.all(loops);
      return { answers, failures };
    },
  };
}

describe("a deployment", () => {
  test("takes over the port of the one before while clients keep connecting: none is refused or cut off", async () => {
    const web = await source("web");
    const first = await web.push(serve("one"));
    expect(first).toMatchObject({ status: "succeeded", previousContainerId: null });
    const port = first.ports[0]?.hostPort ?? 0;
    expect(await ask(port)).toBe("one");
    expect((await find("web")).id).toBe(first.containerId);

    const asking = clients(port);
    const later: Deployment[] = [];
    // A server that needs its time before it listens.
    for (const text of ["two", "three", "four"]) later.push(await web.push(`sleep 1; ${serve(text)}`));
    // Each client's next connection gets it.
    await expect.poll(() => asking.answers.has("four")).toBe(true);
    const { answers, failures } = await asking.stop();
    expect(failures).toEqual([]);
    expect([...answers.keys()]).toEqual(["one", "two", "three", "four"]);
    for (const each of later) {
      expect(each.status, each.detail ?? "").toBe("succeeded");
      expect(each.ports).toMatchObject([{ hostPort: port, status: "active" }]);
    }
    // The one before is gone, and its name is the new one's.
    await expect.poll(async () => (await containers()).map(({ name }) => name)).toEqual(["web"]);
    expect(await find("web")).toMatchObject({ id: later.at(-1)?.containerId, health: "healthy" });
  });

  test("the clients would notice a port that is taken away before it is given to the next", async () => {
    const { body: container } = await host.ask<Container & { ports: { id: string; hostPort: number }[] }>(
      "POST",
      "/v1/containers",
      { image: "box:1", command: ["/bin/sh", "-c", serve("naive")], ports: [{ containerPort: 8080 }] },
      { prefer: "wait=30" },
    );
    const [port] = container.ports;
    await expect.poll(() => ask(port?.hostPort ?? 0).catch(String)).toBe("naive");
    const asking = clients(port?.hostPort ?? 0);
    await sleep(200);
    await host.ask("DELETE", `/v1/ports/${port?.id ?? ""}`, undefined, { prefer: "wait=10" });
    await host.ask(
      "POST",
      "/v1/ports",
      { containerId: container.id, containerPort: 8080, hostPort: port?.hostPort },
      { prefer: "wait=10" },
    );
    await sleep(200);
    expect((await asking.stop()).failures.length).toBeGreaterThan(0);
    await host.ask("DELETE", `/v1/containers/${container.id}?force=true`, undefined, { prefer: "wait=10" });
  });

  test("passes by a port of the range that a process of the host has", async () => {
    const taken = createServer().listen(host.firstPort + 1, "127.0.0.1");
    await once(taken, "listening");
    try {
      const next = await source("next");
      const first = await next.push(serve("beside"));
      expect(first.status, first.detail ?? "").toBe("succeeded");
      expect(first.ports).toMatchObject([{ hostPort: host.firstPort + 2 }]);
      expect(await ask(host.firstPort + 2)).toBe("beside");
      const named = await source("named", { ports: [{ containerPort: 8080, hostPort: host.firstPort + 1 }] });
      const refused = await named.push(serve("never"));
      expect(refused).toMatchObject({ status: "failed", reason: "host_port_in_use" });
      for (const name of ["next", refused.containerId ?? ""])
        await host.ask("DELETE", `/v1/containers/${name}?force=true`);
    } finally {
      taken.close();
    }
  });

  test("that ends, is never healthy, or is replaced meanwhile leaves the one before serving and says why", async () => {
    const api = await source("api", {
      healthcheck: { http: { port: 8080 }, intervalSeconds: 0.2, startPeriodSeconds: 1, startIntervalSeconds: 0.1 },
    });
    const first = await api.push(serve("good"));
    const port = first.ports[0]?.hostPort ?? 0;

    const ended = await api.push("echo no database >&2; exit 3");
    expect(ended).toMatchObject({ status: "failed", reason: "container_ended" });
    expect(ended.detail).toMatch(/exit code 3.*no database/s);

    const sick = await api.push("mkdir /empty; exec httpd -f -p 8080 -h /empty");
    expect(sick).toMatchObject({ status: "failed", reason: "not_healthy" });
    expect(sick.detail).toMatch(/answered 404/);

    // The first container serves, and what failed is stopped but kept for its log until the next.
    expect(await ask(port)).toBe("good");
    expect((await find("api")).id).toBe(first.containerId);
    expect((await find(sick.containerId ?? "")).status).toMatch(/stopping|exited/);

    const slow = await api.build("sleep 60");
    await api.deployed(slow);
    const last = await api.push(serve("better"));
    expect(last.status, last.detail ?? "").toBe("succeeded");
    expect(await api.settled(slow)).toMatchObject({ status: "failed", reason: "superseded" });
    expect(await ask(port)).toBe("better");
    await expect
      .poll(async () => (await containers()).filter(({ name }) => name.startsWith("api")).map(({ name }) => name))
      .toEqual(["api"]);

    const { body } = await host.ask<{ items: { type: string; data: { detail?: string } }[] }>(
      "GET",
      `/v1/events?subjectId=${sick.id}`,
    );
    expect(body.items.map(({ type }) => type)).toEqual([
      "deployment.pending",
      "deployment.starting",
      "deployment.failed",
    ]);
    expect(body.items.at(-1)?.data.detail).toMatch(/answered 404/);
  });
});

describe("a worker killed in a deployment", () => {
  test.each(["pending", "starting", "switching", "succeeded"])(
    "when it is %s: the next one takes it through, and clients notice nothing",
    async (status) => {
      const killed = await source(`killed-${status}`);
      const first = await killed.push(serve("before"));
      const port = first.ports[0]?.hostPort ?? 0;
      const asking = clients(port, 2);
      const build = await killed.build(`sleep 0.5; ${serve("after")}`);
      const { wakeups } = host.api.services;
      const statuses = async () =>
        (
          await host.api.database.owner<{ status: string }[]>`select status from deployments where build_id = ${build}`
        )[0]?.status ?? "";
      const order = ["", "pending", "starting", "switching", "succeeded"];
      const { promise: reached, resolve: reach } = Promise.withResolvers<undefined>();
      const look = () =>
        void statuses().then((now) => {
          if (order.indexOf(now) >= order.indexOf(status)) reach(undefined);
        });
      const unsubscribe = wakeups.subscribe(topics.events(host.project.id), look);
      await reached;
      unsubscribe();
      await host.stop("SIGKILL");
      await host.start();
      const after = await killed.settled(build);
      expect(after.status, after.detail ?? "").toBe("succeeded");
      expect(await ask(port)).toBe("after");
      await expect.poll(() => asking.answers.has("after")).toBe(true);
      const { answers, failures } = await asking.stop();
      expect(failures).toEqual([]);
      expect([...answers.keys()]).toEqual(["before", "after"]);
      await expect
        .poll(async () =>
          (await containers()).filter(({ name }) => name.startsWith(killed.name)).map(({ name }) => name),
        )
        .toEqual([killed.name]);
      await host.ask("DELETE", `/v1/containers/${killed.name}?force=true`, undefined, { prefer: "wait=20" });
    },
  );
});

describe("a container's health", () => {
  const run = async (more: object) => {
    const { status, body } = await host.ask<Container & { detail: string | null }>("POST", "/v1/containers", {
      image: "box:1",
      restartPolicy: { name: "no" },
      stopSignal: "SIGKILL",
      ...more,
    });
    expect(status, JSON.stringify(body)).toBeLessThan(300);
    return body.id;
  };
  const becomes = (id: string, health: string) =>
    expect.poll(async () => (await host.ask<Container>("GET", `/v1/containers/${id}`)).body.health).toBe(health);
  const quick = { intervalSeconds: 0.1, startIntervalSeconds: 0.1, startPeriodSeconds: 0.3, retries: 2 };

  test("is told by a command: its exit code, and why it failed; also after the worker was killed", async () => {
    const id = await run({
      command: ["sleep", "600"],
      healthcheck: { command: ["/bin/sh", "-c", "test -e /ready || { echo not ready; exit 4; }"], ...quick },
    });
    await becomes(id, "unhealthy");
    expect((await host.ask<{ detail: string }>("GET", `/v1/containers/${id}`)).body.detail).toBe(
      "the check ended with exit code 4: not ready",
    );
    await host.ask("POST", `/v1/containers/${id}/exec`, { command: ["touch", "/ready"] });
    await becomes(id, "healthy");
    await host.stop("SIGKILL");
    await host.start();
    await host.ask("POST", `/v1/containers/${id}/exec`, { command: ["rm", "/ready"] });
    await becomes(id, "unhealthy");
    await host.ask("POST", `/v1/containers/${id}/kill`);
    await expect.poll(async () => (await find(id)).status).toBe("exited");
    expect((await find(id)).health).toBeNull();
    const { body } = await host.ask<{ items: { type: string }[] }>("GET", `/v1/events?subjectId=${id}`);
    expect(body.items.map(({ type }) => type)).toEqual([
      "container.created",
      "container.started",
      "container.unhealthy",
      "container.healthy",
      "container.unhealthy",
      "container.kill_requested",
      "container.exited",
    ]);
    await host.ask("DELETE", `/v1/containers/${id}`);
  });

  test("is told by what answers on a port, from the host; a check that hangs fails in time", async () => {
    const command = ["/bin/sh", "-c", serve("fine")];
    const http = await run({ command, healthcheck: { http: { port: 8080, path: "/index.html" }, ...quick } });
    const missing = await run({ command, healthcheck: { http: { port: 8080, path: "/gone" }, ...quick } });
    const closed = await run({ command, healthcheck: { tcp: { port: 81 }, ...quick } });
    const hanging = await run({
      // The kernel takes its connections, and nobody answers them.
      command: ["/bin/sh", "-c", `${serve("x").replace("exec ", "")} & sleep 1; kill -STOP $!; wait`],
      healthcheck: { http: { port: 8080 }, ...quick, timeoutSeconds: 0.2, startPeriodSeconds: 60 },
    });
    for (const id of [http, hanging]) await becomes(id, "healthy");
    const reasons: string[] = [];
    for (const id of [missing, closed, hanging]) {
      await becomes(id, "unhealthy");
      reasons.push((await host.ask<{ detail: string }>("GET", `/v1/containers/${id}`)).body.detail);
    }
    expect(reasons).toEqual([
      "GET /gone on port 8080 answered 404",
      "port 81: nothing listens there",
      "GET / on port 8080: there was no answer within 0.2 s",
    ]);
    for (const id of [http, missing, closed, hanging]) await host.ask("DELETE", `/v1/containers/${id}?force=true`);
  });
});
