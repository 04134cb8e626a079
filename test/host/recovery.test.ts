import { existsSync, readdirSync, readFileSync } from "node:fs";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { failpoints } from "../../src/isolation/failpoint.ts";
import type { SandboxState } from "../../src/isolation/probe.ts";
import { leftovers } from "../support/leftovers.ts";
import { freePort } from "../support/ownership.ts";
import { readLog, TestHost } from "../support/sandboxes.ts";

let host: TestHost;
beforeAll(async () => {
  host = await TestHost.create();
});
afterAll(() => host.destroy());

/** Takes the steps that a converging worker takes until the container runs, and proves that it does, once. */
async function converge(spec: { id: string; slot: number }): Promise<void> {
  const worker = await host.worker([spec]);
  const state = await worker.call<SandboxState>("probe", spec.id);
  if (state.state !== "running") {
    await worker.call("release", spec.id);
    await worker.call("start", host.spec(spec.slot, { id: spec.id }), []);
  }
  expect(await worker.call("probe", spec.id)).toMatchObject({ state: "running" });
  // It is still the runtime for a moment after its start.
  const processes = async () =>
    (await worker.call<{ stdout: string }>("exec", spec.id, { args: ["ps", "-o", "args"] })).stdout;
  await expect.poll(processes).toBe("COMMAND\n/bin/sleep 3600\nps -o args\n");
  const monitors = leftovers(host).filter((line) => line.includes(`/slots/${String(spec.slot)} `));
  expect(monitors).toHaveLength(1);
}

describe("a worker that is killed", () => {
  // One that a failed test has not killed would be the next test's.
  afterEach(() => host.stop());

  test.each(failpoints.filter((name) => /^(?:slot|create|start)\./.test(name)))(
    "at %s leaves nothing that the next one does not take over or remove",
    async (name) => {
      for (const kept of [true, false]) {
        const armed = await host.worker([], name);
        const spec = host.spec(0);
        try {
          spec.slot = await armed.call<number>("takeSlot");
          await armed.call("start", spec, []);
        } catch (error) {
          expect(error).toMatchObject({ code: "killed" });
        }
        await armed.closed;
        if (kept) {
          await converge(spec);
          await host.remove(spec);
        } else await host.worker([]);
        await host.stop();
        expect(leftovers(host)).toEqual([]);
      }
    },
  );

  test.each(failpoints.filter((name) => name.startsWith("release.") || name.startsWith("remove.")))(
    "at %s leaves nothing that the next one does not take over or remove",
    async (name) => {
      for (const kept of [true, false]) {
        const armed = await host.worker([], name);
        const spec = await host.start();
        await armed.call("signal", spec.id, 9);
        await armed.exited(spec.id);
        await expect(armed.call("remove", spec.id, spec.slot)).rejects.toMatchObject({ code: "killed" });
        await armed.closed;
        if (kept) {
          await converge(spec);
          await host.remove(spec);
        } else await host.worker([]);
        await host.stop();
        expect(leftovers(host)).toEqual([]);
      }
    },
  );

  test("is survived by its containers, whose output and exit code reach the next", async () => {
    const script = "trap 'echo bye; exit 5' TERM; echo ready; while true; do sleep 0.05; done";
    const spec = await host.start({ process: { args: ["/bin/sh", "-c", script] } });
    await expect.poll(() => readLog(spec.log)).toBe("ready\n");
    await (await host.worker()).kill();
    const next = await host.worker([spec]);
    expect(await next.call("probe", spec.id)).toMatchObject({ state: "running", pid: spec.pid });
    await next.call("signal", spec.id, 15);
    await next.exited(spec.id);
    expect(await next.call("probe", spec.id)).toMatchObject({ state: "exited", exitCode: 5 });
    expect(readLog(spec.log)).toBe("ready\nbye\n");
    await host.remove(spec);
  });

  test("misses no end that came while it was away", async () => {
    const spec = await host.start();
    await (await host.worker()).kill();
    process.kill(spec.pid, "SIGKILL");
    await expect.poll(() => readdirSync(`${host.config.runDir}/exits`)).toHaveLength(1);
    const next = await host.worker([spec]);
    expect(await next.call("probe", spec.id)).toMatchObject({ state: "exited", exitCode: 137, oomKilled: false });
    await host.remove(spec);
  });

  test("together with a monitor: the container is ended, and its exit code said to be unknown", async () => {
    const spec = await host.start();
    await (await host.worker()).kill();
    process.kill(monitorOf(spec.slot), "SIGKILL");
    const next = await host.worker([spec]);
    await next.exited(spec.id);
    expect(await next.call("probe", spec.id)).toMatchObject({
      state: "exited",
      exitCode: null,
      reason: "monitor_lost",
    });
    await host.remove(spec);
  });
});

test("a monitor that is killed is noticed, and its container ended once", async () => {
  const worker = await host.worker();
  const spec = await host.start();
  process.kill(monitorOf(spec.slot), "SIGKILL");
  await worker.exited(spec.id);
  expect(await worker.call("probe", spec.id)).toMatchObject({
    state: "exited",
    exitCode: null,
    reason: "monitor_lost",
  });
  await host.remove(spec);
  await host.stop();
  expect(leftovers(host)).toEqual([]);
});

test("a monitor that is killed while it waits in the pool is replaced", async () => {
  await host.worker();
  const ready = (): string[] => leftovers(host).filter((line) => line.startsWith("process "));
  await expect.poll(ready).toHaveLength(8);
  const victim = Number(ready()[0]?.split(" ")[1]);
  process.kill(victim, "SIGKILL");
  await expect.poll(() => ready().some((line) => line.startsWith(`process ${String(victim)} `))).toBe(false);
  await expect.poll(ready).toHaveLength(8);
  await host.stop();
  expect(leftovers(host)).toEqual([]);
});

test("a second worker on the same data directory is refused", async () => {
  await host.worker();
  await expect(host.second()).rejects.toThrow("did not start");
});

test("going down ends and removes everything; disks stay for the next start", async () => {
  const [one, two] = [await host.start(), await host.start()];
  const worker = await host.worker();
  await worker.call("exec", one.id, { args: ["touch", "/kept"] });
  await worker.call("publish", one.id, [
    { id: "prt_a", containerPort: 80, hostPort: freePort(), protocol: "tcp", hostAddress: "127.0.0.1" },
  ]);
  await host.down();
  for (const { pid } of [one, two]) await expect.poll(() => existsSync(`/proc/${String(pid)}`)).toBe(false);
  const next = await host.worker([one]);
  expect(await next.call("probe", one.id)).toEqual({ state: "absent" });
  await next.call("start", host.spec(one.slot, { id: one.id, process: { args: ["/bin/ls", "/kept"] } }), []);
  await next.exited(one.id);
  expect(await next.call("probe", one.id)).toMatchObject({ exitCode: 0 });
  await host.remove(one);
  await host.stop();
  expect(leftovers(host)).toEqual([]);
});

function monitorOf(slot: number): number {
  const note = readFileSync(`${host.config.runDir}/slots/${String(slot)}/monitor.json`, "utf8");
  return (JSON.parse(note) as { pid: number }).pid;
}
