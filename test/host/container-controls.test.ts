import { readFileSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { writeTar } from "../../src/image/tar-write.ts";
import type { Answer, Problem } from "../support/api.ts";
import { DrivenHost } from "../support/driven-host.ts";
import { collect, entry } from "../support/image.ts";

// What clients do with a container that runs, through the API and a real worker.

interface Container {
  id: string;
  status: string;
  exitCode: number | null;
}

let host: DrivenHost;
beforeAll(async () => {
  host = await DrivenHost.create(inject("postgresSocketDir"));
  await host.start();
  await host.buildBusybox("box:1");
});
afterAll(() => host.destroy());

const wait = { prefer: "wait=30" };

async function run(script: string, more: object = {}): Promise<string> {
  const body = { image: "box:1", command: ["/bin/sh", "-c", script], ...more };
  const { status, body: made } = await host.ask<Container>("POST", "/v1/containers", body, wait);
  expect({ status, container: made }).toMatchObject({ status: 201, container: { status: "running" } });
  return made.id;
}
const act = <T = Container>(id: string, verb: string, body?: object): Promise<Answer<T>> =>
  host.ask<T>("POST", `/v1/containers/${id}/${verb}`, body, wait);
const get = async (id: string): Promise<Container> => (await host.ask<Container>("GET", `/v1/containers/${id}`)).body;
const remove = (id: string) => host.ask("DELETE", `/v1/containers/${id}?force=true`, undefined, wait);
const events = async (id: string): Promise<string[]> =>
  (await host.ask<{ items: { type: string }[] }>("GET", `/v1/events?subjectId=${id}`)).body.items.map(
    ({ type }) => type,
  );

/** Clock ticks that the container's processes have computed for. */
async function computed(id: string): Promise<number> {
  const [row] = await host.api.database.owner<{ pid: number }[]>`select pid from containers where id = ${id}`;
  return Number(readFileSync(`/proc/${String(row?.pid)}/stat`, "utf8").split(" ")[13]);
}

describe("pausing", () => {
  const busy = "while true; do :; done";

  test("stops all that a container does, until it goes on", async () => {
    const id = await run(busy);
    await expect.poll(() => computed(id)).toBeGreaterThan(0);
    expect((await act(id, "pause")).body.status).toBe("paused");
    const before = await computed(id);
    expect(await act<Problem>(id, "exec", { command: ["/bin/true"] })).toMatchObject({
      status: 409,
      body: { code: "invalid_state" },
    });
    // Again changes nothing, and a new worker finds it as it is.
    expect((await act(id, "pause")).body.status).toBe("paused");
    await host.stop();
    await host.start();
    expect((await get(id)).status).toBe("paused");
    expect(await computed(id)).toBe(before);
    expect((await act(id, "unpause")).body.status).toBe("running");
    await expect.poll(() => computed(id)).toBeGreaterThan(before);
    expect(await events(id)).toEqual(expect.arrayContaining(["container.paused", "container.unpaused"]));
    await remove(id);
  });

  test.each([
    ["stop", "it ends by its signal", { exitCode: 7 }],
    ["kill", "it is killed", { exitCode: 137 }],
  ])("a container that stands still takes a %s: %s", async (verb, _, end) => {
    const id = await run("trap 'exit 7' TERM; while true; do sleep 0.1; done");
    await act(id, "pause");
    await act(id, verb, verb === "kill" ? {} : undefined);
    await act(id, "wait");
    expect(await get(id)).toMatchObject({ status: "exited", ...end });
    // The wish to stand still ended with the run.
    expect((await act(id, "start")).body.status).toBe("running");
    await act(id, "pause");
    expect((await remove(id)).status).toBe(204);
  });

  test("is gone on with by the next worker when one is killed in the middle", async () => {
    const id = await run(busy);
    for (const [verb, status] of [
      ["pause", "paused"],
      ["unpause", "running"],
    ] as const) {
      // Nobody waits: the worker is killed before, while or after it does as it is told.
      await host.ask("POST", `/v1/containers/${id}/${verb}`);
      await host.stop("SIGKILL");
      await host.start();
      await expect.poll(async () => (await get(id)).status).toBe(status);
      const before = await computed(id);
      if (status === "running") await expect.poll(() => computed(id)).toBeGreaterThan(before);
      else expect(await computed(id)).toBe(before);
    }
    await remove(id);
  });

  test("needs a container that runs", async () => {
    const { body } = await host.ask<Container>("POST", "/v1/containers", { image: "box:1", start: false }, wait);
    for (const verb of ["pause", "unpause"]) {
      expect(await act<Problem>(body.id, verb)).toMatchObject({ status: 409, body: { code: "invalid_state" } });
    }
    await remove(body.id);
  });
});

interface Stats {
  cpu: { seconds: number; throttledSeconds: number };
  memory: { usedBytes: number; peakBytes: number; limitBytes: number };
  processes: { count: number; limit: number };
  network: { receivedBytes: number; sentBytes: number; sentPackets: number };
  disk: { usedBytes: number; limitBytes: number };
}
const MiB = 2 ** 20;

describe("what a container uses", () => {
  const stats = async (id: string): Promise<Stats> => (await host.ask<Stats>("GET", `/v1/containers/${id}/stats`)).body;

  test("is told of each resource", async () => {
    const id = await run("sleep 1000", { resources: { cpus: 0.5, memory: 64 * MiB, pids: 20, disk: 64 * MiB } });
    const before = await stats(id);
    expect(before).toMatchObject({
      memory: { limitBytes: 64 * MiB },
      processes: { count: 1, limit: 20 },
      disk: { limitBytes: 64 * MiB },
    });
    const work = [
      "dd if=/dev/zero of=/dev/shm/fill bs=1M count=20",
      "dd if=/dev/zero of=/file bs=1M count=10 conv=fsync",
      "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done",
      // Counted on its link, and refused by the host behind it.
      "nc -w 1 10.255.255.1 9",
    ].join("; ");
    await act(id, "exec", { command: ["/bin/sh", "-c", work] });
    const after = await stats(id);
    expect(after.memory.usedBytes - before.memory.usedBytes).toBeGreaterThan(19 * MiB);
    expect(after.memory.peakBytes).toBeGreaterThanOrEqual(after.memory.usedBytes);
    expect(after.disk.usedBytes - before.disk.usedBytes).toBeGreaterThan(9 * MiB);
    expect(after.cpu.seconds).toBeGreaterThan(before.cpu.seconds + 0.05);
    expect(after.network.sentPackets).toBeGreaterThan(before.network.sentPackets);
    await remove(id);
  });

  test("streams until its end, and is nothing afterwards", async () => {
    const id = await run("sleep 2");
    const response = await host.api.app.request(`/v1/containers/${id}/stats`, {
      headers: { authorization: `Bearer ${host.project.tokens.viewer}`, accept: "text/event-stream" },
    });
    const events = (await response.text()).split("\n\n").filter((text) => text.startsWith("id: "));
    expect(events.length).toBeGreaterThan(1);
    expect(JSON.parse(/^data: (.*)$/m.exec(events[1] ?? "")?.[1] ?? "")).toHaveProperty("cpu.seconds");
    await act(id, "wait");
    expect(await host.ask<Problem>("GET", `/v1/containers/${id}/stats`)).toMatchObject({
      status: 409,
      body: { code: "invalid_state" },
    });
    await remove(id);
  });
});

test("its processes are listed by the numbers that they have inside", async () => {
  const id = await run("sleep 1001 & sleep 1002 & wait", { user: "7:7" });
  const list = async () =>
    (await host.ask<{ items: { pid: number; command: string[] }[] }>("GET", `/v1/containers/${id}/processes`)).body
      .items;
  await expect.poll(async () => (await list()).length).toBe(3);
  const items = await list();
  expect(items).toMatchObject([
    { pid: 1, parentPid: 0, uid: 7, command: ["/bin/sh", "-c", "sleep 1001 & sleep 1002 & wait"] },
    { parentPid: 1, uid: 7, command: ["sleep", "1001"] },
    { parentPid: 1, uid: 7, command: ["sleep", "1002"] },
  ]);
  const inside = await act<{ stdout: string }>(id, "exec", { command: ["/bin/ls", "/proc"] });
  for (const { pid } of items) expect(inside.body.stdout.split("\n")).toContain(String(pid));
  await remove(id);
});

describe("limits", () => {
  const change = <T = Container & { resources: object }>(id: string, resources: object): Promise<Answer<T>> =>
    host.ask<T>("PATCH", `/v1/containers/${id}`, { resources }, wait);
  const read = async (id: string): Promise<string> => {
    const files = [
      "memory.max memory/memory.limit_in_bytes memory/memory.memsw.limit_in_bytes",
      "cpu.max cpu/cpu.cfs_quota_us",
      "pids.max pids/pids.max",
    ];
    const command = ["/bin/sh", "-c", `cd /sys/fs/cgroup; cat ${files.join(" ")} 2>/dev/null`];
    return (await act<{ stdout: string }>(id, "exec", { command })).body.stdout;
  };

  test("of a running container change at once, up and down, and hold for its next run", async () => {
    const id = await run("sleep 1000", { resources: { cpus: 0.5, memory: 64 * MiB, pids: 20 } });
    for (const [cpus, memory, pids] of [
      [0.75, 96 * MiB, 30],
      [0.25, 32 * MiB, 10],
    ] as const) {
      const { status, body } = await change(id, { cpus, memory, pids });
      expect({ status, resources: body.resources }).toMatchObject({ status: 200, resources: { cpus, memory, pids } });
      const inside = await read(id);
      for (const value of [memory, cpus * 100_000, pids])
        expect(inside).toMatch(new RegExp(`^${String(value)}\\b`, "m"));
    }
    expect((await change(id, { pids: 15 })).body.resources).toMatchObject({ cpus: 0.25, memory: 32 * MiB, pids: 15 });
    await act(id, "restart");
    expect(await read(id)).toMatch(/^15$/m);
    await act(id, "stop");
    expect((await change(id, { pids: 25 })).status).toBe(200);
    await act(id, "start");
    expect(await read(id)).toMatch(/^25$/m);
    await remove(id);
  });

  test("don't take memory that is held", async () => {
    const id = await run("dd if=/dev/zero of=/dev/shm/fill bs=1M count=40 2>/dev/null; sleep 1000", {
      resources: { memory: 64 * MiB },
    });
    await expect
      .poll(async () => (await host.ask<Stats>("GET", `/v1/containers/${id}/stats`)).body.memory.usedBytes)
      .toBeGreaterThan(40 * MiB);
    expect(await change<Problem>(id, { memory: 16 * MiB })).toMatchObject({
      status: 409,
      body: { code: "memory_in_use" },
    });
    expect(await get(id)).toMatchObject({ status: "running", resources: { memory: 64 * MiB } });
    expect(await read(id)).toMatch(new RegExp(`^${String(64 * MiB)}$`, "m"));
    expect(await events(id)).toContain("container.resources_refused");
    await remove(id);
  });

  test("can't be more than the project or the host has", async () => {
    const id = await run("sleep 1000");
    expect((await change<Problem>(id, { memory: 4096 * 2 ** 30 })).body).toMatchObject({ code: "quota_exceeded" });
    expect((await change<Problem>(id, { cpus: 500 })).body.code).toMatch(/quota_exceeded|no_capacity/);
    expect((await change<Problem>(id, { disk: MiB })).body).toMatchObject({ code: "invalid_request" });
    await remove(id);
  });
});

test("its changes are told from its image's files, and no link leads out of them", async () => {
  const script = [
    "mkdir -p /new/deep",
    "echo x >/new/deep/file",
    "rm /bin/yes",
    "touch /bin/busybox",
    // A directory of the image becomes a link to one of the host, and the reverse.
    "rm -r /replaced && ln -s /etc /replaced",
    "rm /link && mkdir /link && echo x >/link/passwd && echo x >/link/made",
    "sleep 1000",
  ];
  const image = await host.api.app.request("/v1/builds?tag=changes:1", {
    method: "POST",
    headers: {
      authorization: `Bearer ${host.project.tokens.admin}`,
      "content-type": "application/x-tar",
      prefer: "wait=60",
    },
    body: await collect(
      writeTar([
        entry("Dockerfile", {
          content: "FROM box:1\nRUN mkdir /replaced && touch /replaced/passwd && ln -s /etc /link\n",
        }),
      ]),
    ),
  });
  expect(await image.json()).toMatchObject({ status: "succeeded" });
  const id = await run(script.join("; "), { image: "changes:1" });
  const list = () =>
    host.ask<{ items: { path: string; kind: string }[]; truncated: boolean }>("GET", `/v1/containers/${id}/changes`);
  await expect.poll(async () => (await list()).body.items.map(({ path }) => path)).toContain("/link/made");
  const { body } = await list();
  expect(body.truncated).toBe(false);
  expect(Object.fromEntries(body.items.map(({ path, kind }) => [path, kind]))).toEqual({
    "/bin": "modified",
    "/bin/busybox": "modified",
    "/bin/yes": "deleted",
    "/link": "modified",
    "/link/made": "added",
    "/link/passwd": "added",
    "/new": "added",
    "/new/deep": "added",
    "/new/deep/file": "added",
    "/replaced": "modified",
  });
  await act(id, "stop");
  expect((await list()).status).toBe(409);
  await remove(id);
});
