import { readFileSync } from "node:fs";
import { statfs } from "node:fs/promises";
import { createServer, type Server } from "node:net";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { diskReserve } from "../../src/core/host.ts";
import { ask, type Problem } from "../support/api.ts";
import { DrivenHost } from "../support/driven-host.ts";
import { entry, layerBlob, pushImage } from "../support/image.ts";
import { leftovers } from "../support/leftovers.ts";
import { startRegistry, type TestRegistry } from "../support/registry.ts";

// The life of containers through the API and a real worker, as clients see it.

interface Container {
  id: string;
  name: string;
  status: string;
  exitCode: number | null;
  reason: string | null;
  detail: string | null;
  oomKilled: boolean;
  restartCount: number;
  ipAddress: string;
  hostname: string | null;
  ports: { id: string; hostPort: number; status: string }[];
}
type Body = Record<string, unknown>;

let registry: TestRegistry;
let host: DrivenHost;

beforeAll(async () => {
  registry = await startRegistry();
  host = await DrivenHost.create(inject("postgresSocketDir"), {
    BERTH_REGISTRY_MIRRORS: "docker.io=http://127.0.0.1:9",
    BERTH_INSECURE_REGISTRIES: registry.host,
  });
  await host.start();
  await host.buildBusybox("box:1");
});
afterAll(async () => {
  await host.destroy();
  await registry.stop();
});

/** Creates a container of busybox and waits until it has settled. */
async function run(command: string[] | string, more: Body = {}): Promise<Container> {
  const argv = typeof command === "string" ? ["/bin/sh", "-c", command] : command;
  const body = { image: "box:1", command: argv, ...more };
  const answer = await host.ask<Container>("POST", "/v1/containers", body, { prefer: "wait=30" });
  expect(answer.status, JSON.stringify(answer.body)).toBeLessThan(300);
  return answer.body;
}

const get = async (id: string) => (await host.ask<Container>("GET", `/v1/containers/${id}`)).body;
const ended = async (id: string) =>
  (await host.ask<{ exitCode: number | null }>("POST", `/v1/containers/${id}/wait`, undefined, { prefer: "wait=30" }))
    .body;
const logs = async (id: string, query = "") => {
  const response = await host.api.app.request(`/v1/containers/${id}/logs${query}`, {
    headers: { authorization: `Bearer ${host.project.tokens.viewer}` },
  });
  return response.text();
};
const remove = (id: string) => host.ask("DELETE", `/v1/containers/${id}?force=true`, undefined, { prefer: "wait=30" });
const exec = async (id: string, body: Body) =>
  (
    await host.ask<{ exitCode: number; stdout: string; stderr: string } & Problem>(
      "POST",
      `/v1/containers/${id}/exec`,
      body,
    )
  ).body;

describe("a container", () => {
  test("runs, prints, ends with its code, and is gone once deleted", async () => {
    const { id } = await run("echo out; echo err >&2; exit 3");
    await ended(id);
    expect(await get(id)).toMatchObject({ status: "exited", exitCode: 3, reason: null, oomKilled: false });
    expect(await logs(id, "?stderr=false")).toBe("out\n");
    expect(await logs(id, "?stdout=false")).toBe("err\n");
    await remove(id);
    expect((await host.ask("GET", `/v1/containers/${id}`)).status).toBe(404);
    const kept = leftovers(host).filter((line) => line.includes(id));
    expect(kept).toEqual([]);
  });

  test("is stopped by its signal, started again with its files, and killed", async () => {
    const { id } = await run(
      "trap 'echo asked; exit 0' TERM; echo run >> /count; cat /count; while true; do sleep 0.1; done",
    );
    await expect.poll(() => logs(id)).toBe("run\n");
    await host.ask("POST", `/v1/containers/${id}/stop`, undefined, { prefer: "wait=30" });
    expect(await get(id)).toMatchObject({ status: "exited", exitCode: 0 });
    expect(await logs(id)).toBe("run\nasked\n");
    await host.ask("POST", `/v1/containers/${id}/start`, undefined, { prefer: "wait=30" });
    await expect.poll(() => logs(id)).toBe("run\nasked\nrun\nrun\n");
    await host.ask("POST", `/v1/containers/${id}/kill`, { signal: "SIGKILL" });
    await ended(id);
    expect(await get(id)).toMatchObject({ status: "exited", exitCode: 137 });
    await remove(id);
  });

  test("that is killed stays down whatever its restart policy; one that ends by another signal is started again", async () => {
    const { body } = await host.ask<{ id: string }>(
      "POST",
      "/v1/containers",
      {
        image: "box:1",
        command: ["/bin/sh", "-c", "trap 'exit 3' HUP; while true; do sleep 0.1; done"],
        restartPolicy: { name: "always" },
      },
      { prefer: "wait=30" },
    );
    const restarts = async () => (await get(body.id)).restartCount;
    await host.ask("POST", `/v1/containers/${body.id}/kill`, { signal: "SIGHUP" });
    await expect.poll(restarts, { timeout: 20_000 }).toBe(1);
    await expect.poll(async () => (await get(body.id)).status, { timeout: 20_000 }).toBe("running");
    await host.ask("POST", `/v1/containers/${body.id}/kill`, undefined, { prefer: "wait=30" });
    expect(await get(body.id)).toMatchObject({ status: "exited", exitCode: 137, restartCount: 1 });
    await remove(body.id);
  });

  test("that ignores its signal is killed when its time is up", async () => {
    const { id } = await run("trap '' TERM; echo up; while true; do sleep 0.1; done", { stopTimeoutSeconds: 1 });
    await expect.poll(() => logs(id)).toBe("up\n");
    await host.ask("POST", `/v1/containers/${id}/stop`, undefined, { prefer: "wait=30" });
    expect(await get(id)).toMatchObject({ status: "exited", exitCode: 137 });
    await remove(id);
  });

  test("follows its log to the end, and answers commands from inside", async () => {
    const { id } = await run("echo one; while [ ! -e /go ]; do sleep 0.05; done; echo two", { env: { WHO: "me" } });
    const followed = logs(id, "?follow=true");
    expect(await exec(id, { command: ["/bin/sh", "-c", "echo $WHO; cat; exit 4"], stdin: "typed" })).toMatchObject({
      exitCode: 4,
      stdout: "me\ntyped",
      stderr: "",
    });
    expect(await exec(id, { command: ["/no/such"] })).toMatchObject({
      code: "command_not_found",
      detail: 'The image has no command "/no/such".',
    });
    expect(await exec(id, { command: ["/bin/true"], workingDirectory: "/no/such" })).toMatchObject({
      code: "file_not_found",
      detail: 'The container has no directory "/no/such".',
    });
    await exec(id, { command: ["/bin/touch", "/go"] });
    expect(await followed).toBe("one\ntwo\n");
    expect(await exec(id, { command: ["/bin/true"] })).toMatchObject({ code: "invalid_state" });
    await remove(id);
  });

  test("restarts by its policy, as often as it says", async () => {
    const { id } = await run("echo again; exit 1", { restartPolicy: { name: "on-failure", maxAttempts: 2 } });
    await expect
      .poll(() => get(id), { timeout: 20_000 })
      .toMatchObject({ status: "exited", exitCode: 1, restartCount: 2 });
    expect(await logs(id)).toBe("again\nagain\nagain\n");
    await remove(id);
  });

  test("of autoRemove goes by itself", async () => {
    const { id } = await run("exit 0", { autoRemove: true });
    await expect
      .poll(async () => (await host.ask("GET", `/v1/containers/${id}`)).status, { timeout: 10_000 })
      .toBe(404);
  });

  test("that takes more memory than it may is killed, and says so", async () => {
    const { id } = await run("tail /dev/zero", { resources: { memory: 32 * 2 ** 20 } });
    await ended(id);
    expect(await get(id)).toMatchObject({ status: "exited", exitCode: 137, oomKilled: true, reason: "oom_killed" });
    await remove(id);
  });

  test.each([
    ["a command that is not there", { command: ["/bin/nothing"] }, "command_not_found"],
    ["a command that is no program", { command: ["/etc"] }, "command_not_executable"],
    ["a user that is not there", { command: ["/bin/true"], user: "nobody-here" }, "invalid_user"],
    ["an image of a registry that is not there", { image: "elsewhere:1" }, "registry_unreachable"],
    ["an image that its registry lacks", { image: "REGISTRY/none:1" }, "image_not_found"],
  ])("%s fails with a reason", async (_, more: Body & { image?: string }, reason) => {
    const image = (more.image ?? "box:1").replace("REGISTRY", registry.host);
    const container = await run(["/bin/true"], { ...more, image });
    const settled = await reaches(container.id, "failed");
    expect(settled.reason).toBe(reason);
    expect(settled.detail).not.toBe(null);
    await remove(container.id);
  });
});

/** Waits for a status. */
async function reaches(id: string, status: string): Promise<Container> {
  await expect.poll(async () => (await get(id)).status, { timeout: 30_000 }).toBe(status);
  return get(id);
}

describe("ports", () => {
  const serve = "mkdir /www; hostname > /www/index.html; exec httpd -f -p 80 -h /www";
  const page = (port: number) =>
    fetch(`http://127.0.0.1:${String(port)}/`).then(
      (r) => r.text(),
      () => null,
    );
  const foreign: Server = createServer();
  afterAll(() => void foreign.close());

  test("two instances of one image on two ports; a taken port is refused and starts nothing", async () => {
    const ports = [{ containerPort: 80 }];
    const one = await run(serve, { name: "one", ports });
    const two = await run(serve, { name: "two", hostname: "two", ports });
    expect([one.ports[0]?.hostPort, two.ports[0]?.hostPort]).toEqual([host.firstPort, host.firstPort + 1]);
    // Nobody named it: it is called by its address.
    const { hostname, ipAddress } = await get(one.id);
    expect(hostname).toBe(`ip-${ipAddress.replaceAll(".", "-")}`);
    await expect.poll(() => page(host.firstPort)).toBe(`${String(hostname)}\n`);
    await expect.poll(() => page(host.firstPort + 1)).toBe("two\n");
    const taken = { image: "box:1", name: "three", ports: [{ containerPort: 80, hostPort: host.firstPort }] };
    expect((await host.ask<Problem>("POST", "/v1/containers", taken)).body).toMatchObject({
      status: 409,
      code: "port_taken",
    });
    expect((await host.ask("GET", "/v1/containers/three")).status).toBe(404);
    await remove(one.id);
    const again = await run(serve, {
      name: "four",
      hostname: "four",
      ports: [{ containerPort: 80, hostPort: host.firstPort }],
    });
    await expect.poll(() => page(host.firstPort)).toBe("four\n");
    await remove(two.id);
    await remove(again.id);
    expect(await page(host.firstPort)).toBe(null);
  });

  test("are added to and taken from a running container", async () => {
    const { id } = await run(serve, { name: "live", hostname: "live" });
    const added = await host.ask<{ id: string; hostPort: number }>("POST", "/v1/ports", {
      containerId: id,
      containerPort: 80,
    });
    await expect.poll(() => page(added.body.hostPort)).toBe("live\n");
    await host.ask("DELETE", `/v1/ports/${added.body.id}`);
    await expect.poll(() => page(added.body.hostPort)).toBe(null);
    await remove(id);
  });

  test("one that a process of the host has gives a failed container that says so", async () => {
    await new Promise<void>((resolve) => foreign.listen(host.firstPort + 5, "127.0.0.1", resolve));
    const container = await run(serve, { ports: [{ containerPort: 80, hostPort: host.firstPort + 5 }] });
    expect(await reaches(container.id, "failed")).toMatchObject({ reason: "host_port_in_use" });
    await remove(container.id);
  });
});

test("projects do not reach each other; a project's own containers do", async () => {
  const listen = { command: ["/bin/sh", "-c", "while true; do echo hello | nc -l -p 7; done"] };
  const mine = await run("sleep 1000", { name: "mine" });
  const sibling = await run(listen.command, { name: "sibling" });
  const other = await host.api.project("other");
  await host.buildBusybox("box:1", other);
  const body = { image: "box:1", name: "stranger", ...listen };
  const stranger = (await host.ask<Container>("POST", "/v1/containers", body, { prefer: "wait=30" }, other)).body;
  const talk = async (address: string) =>
    (await exec(mine.id, { command: ["/bin/sh", "-c", `timeout 2 nc ${address} 7 </dev/null`] })).stdout;
  await expect.poll(() => talk(sibling.ipAddress)).toBe("hello\n");
  expect(await talk(stranger.ipAddress)).toBe("");
  expect((await host.ask("GET", `/v1/containers/${stranger.id}`)).status).toBe(404);
  await remove(mine.id);
  await remove(sibling.id);
  await host.ask("DELETE", `/v1/containers/${stranger.id}?force=true`, undefined, { prefer: "wait=30" }, other);
});

test("an image is pulled from a registry by a job that counts, and only once", async () => {
  const reference = `${registry.host}/team/app:1`;
  const busybox = [
    entry("bin", { type: "directory" }),
    entry("bin/busybox", { mode: 0o755, content: readFileSync("/bin/busybox") }),
  ];
  await pushImage(registry.host, "team/app", "1", [await layerBlob(busybox)]);
  const pull = async () => {
    const job = await host.ask<{ status: string; result: Body }>(
      "POST",
      "/v1/images/pull",
      { reference },
      { prefer: "wait=30" },
    );
    expect(job.body.status, JSON.stringify(job.body)).toBe("succeeded");
    return job.body.result;
  };
  expect(await pull()).toMatchObject({ layersTransferred: 1, layersSkipped: 0 });
  expect(await pull()).toMatchObject({ layersTransferred: 0, layersSkipped: 1, bytesTransferred: 0 });
  const { id } = await run(["/bin/busybox", "echo", "pulled"], { image: reference });
  await ended(id);
  expect(await logs(id)).toBe("pulled\n");
  await remove(id);
});

test("its host tells how much of its disk is free, and what of that it keeps", async () => {
  const { bsize, blocks } = await statfs(host.config.dataDir);
  const { app, operator } = host.api;
  const { body } = await ask<{ items: { diskFree: number; diskReserve: number }[] }>(app, operator, "GET", "/v1/hosts");
  const [shown] = body.items;
  expect(shown?.diskFree).toBeGreaterThan(0);
  expect(shown?.diskFree).toBeLessThan(bsize * blocks);
  expect(shown?.diskReserve).toBe(diskReserve(bsize * blocks));
});
