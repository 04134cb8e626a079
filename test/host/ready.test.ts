import { existsSync, readFileSync, watch } from "node:fs";
import { afterAll, beforeAll, expect, test } from "vitest";
import { usableSlots } from "../../src/isolation/plan/layout.ts";
import type { SandboxSpec } from "../../src/isolation/sandbox-spec.ts";
import { leftovers } from "../support/leftovers.ts";
import { readLog, TestHost, type Wish } from "../support/sandboxes.ts";

let host: TestHost;
beforeAll(async () => {
  host = await TestHost.create();
});
afterAll(() => host.destroy());

const usual: Wish = { hostname: null, limits: { disk: 2 ** 30 } };

/** Starts a container of the template as the engine does: on a slot that is taken for it. */
async function start(wish: Wish): Promise<SandboxSpec & { pid: number }> {
  const worker = await host.worker();
  return startOn(await worker.call<number>("takeSlot", host.spec(0, wish)), wish);
}

async function startOn(slot: number, wish: Wish): Promise<SandboxSpec & { pid: number }> {
  const worker = await host.worker();
  const spec = host.spec(slot, wish);
  return { ...spec, ...(await worker.call<{ pid: number }>("start", spec, [])) };
}

/** The slots of sandboxes that are nobody's and have their first process. */
function readySlots(): number[] {
  const { runDir, instance } = host.config;
  return Array.from({ length: 64 }, (_, slot) => slot).filter((slot) => {
    const owner = `${runDir}/slots/${String(slot)}/owner.json`;
    // The runtime's own state file is the last thing that `create` writes.
    const state = `${runDir}/runtime/${instance}-${String(slot)}/status`;
    return existsSync(owner) && existsSync(state) && readFileSync(owner, "utf8").includes('"id":null');
  });
}

/** Waits until the slots that are ready satisfy; those. */
async function whenReady(satisfy: (slots: number[]) => boolean): Promise<number[]> {
  const found = Promise.withResolvers<number[]>();
  const look = (): void => {
    const slots = readySlots();
    if (satisfy(slots)) found.resolve(slots);
  };
  const watcher = watch(host.config.runDir, { recursive: true }, look);
  try {
    look();
    return await found.promise;
  } finally {
    watcher.close();
  }
}

/** Whether this stands in the config of the slot's sandbox. */
const hasConfig = (slot: number, text: string) =>
  readFileSync(`${host.config.runDir}/slots/${String(slot)}/config.json`, "utf8").includes(text);

/**
 * Takes the sandbox that is ready for a wish, by what only its config has. The worker hears of one that is complete a
 * moment after it is to be seen.
 */
async function takeReady(wish: Wish, text: string): Promise<number> {
  const worker = await host.worker();
  const ready = await whenReady((slots) => slots.some((slot) => hasConfig(slot, text)));
  for (;;) {
    const slot = await worker.call<number>("takeSlot", host.spec(0, wish));
    if (ready.includes(slot)) return slot;
    await worker.call("freeSlot", slot);
  }
}

/** Waits until one is ready. */
async function sandboxReady(): Promise<number> {
  return (await whenReady((slots) => slots.length > 0))[0] ?? -1;
}

/** Jiffies since the machine's start when the process was made (proc(5), stat field 22). */
const madeAt = (pid: number): number =>
  Number(
    readFileSync(`/proc/${String(pid)}/stat`, "utf8")
      .split(") ")[1]
      ?.split(" ")[19],
  );

const script =
  "echo $HOSTNAME $(hostname) $(cat /etc/hostname) $(ip -4 -o addr show eth0 | grep -o '10[.0-9]*' | head -1)";

test("what was started is made ready once more, and is the same in every respect", async () => {
  const worker = await host.worker();
  const wish: Wish = { ...usual, process: { args: ["/bin/sh", "-c", `${script}; exec sleep 3600`] } };
  const first = await start(wish);
  const second = await startOn(await takeReady(wish, "exec sleep 3600"), wish);
  expect(second.slot).not.toBe(first.slot);
  for (const one of [first, second]) {
    const address = await worker.call<string>("addressOf", one.slot);
    const name = `ip-${address.replaceAll(".", "-")}`;
    await worker.call("exec", one.id, { args: ["true"] });
    expect(readLog(one.log)).toBe(`${name} ${name} ${name} ${address}\n`);
    expect(await worker.call("probe", one.id)).toMatchObject({ state: "running", pid: one.pid });
  }
  const limits = {
    args: ["sh", "-c", "cat /proc/self/cgroup /sys/fs/cgroup/memory*/memory.limit_in_bytes 2>/dev/null | tail -1"],
  };
  expect(await worker.call("exec", second.id, limits)).toEqual(await worker.call("exec", first.id, limits));
  for (const one of [first, second]) await host.remove(one);
});

test("another project, or any other wish, does not get it", async () => {
  const first = await start(usual);
  const slot = await sandboxReady();
  for (const other of [
    { ...usual, projectId: "prj_other" },
    { ...usual, process: { env: ["A=b"] } },
  ]) {
    const one = await start(other);
    expect(one.slot).not.toBe(slot);
    await host.remove(one);
  }
  await host.remove(first);
});

test("those that no start of late asks for make room for those that one does; nothing is lost on the way", async () => {
  for (const kind of ["KIND=old", "KIND=new"]) {
    const wish: Wish = { ...usual, process: { env: [kind] } };
    for (let i = 0; i < 4; i++) await host.remove(await start(wish));
    // Four sandboxes, and as many slots as are kept ready beside them.
    await whenReady(
      (slots) => slots.filter((slot) => hasConfig(slot, kind)).length === 4 && host.preparedSlots() === 8,
    );
  }
  await host.stop();
  expect(leftovers(host)).toEqual([]);
});

/** The monitor of a slot's sandbox, and its first process. */
const killed = {
  monitor: (dir: string) => (JSON.parse(readFileSync(`${dir}/monitor.json`, "utf8")) as { pid: number }).pid,
  process: (dir: string) => Number(readFileSync(`${dir}/pid`, "utf8")),
};

test.each(Object.entries(killed))("one whose %s was killed after it was taken is not given out", async (what, pid) => {
  const worker = await host.worker();
  const wish: Wish = { ...usual, process: { env: [`KILLED=${what}`] } };
  const first = await start(wish);
  const slot = await takeReady(wish, `KILLED=${what}`);
  const victim = pid(`${host.config.runDir}/slots/${String(slot)}`);
  process.kill(victim, "SIGKILL");
  await expect.poll(() => existsSync(`/proc/${String(victim)}`)).toBe(false);
  const second = await startOn(slot, wish);
  expect(await worker.call("probe", second.id)).toMatchObject({ state: "running" });
  expect(madeAt(second.pid)).toBeGreaterThanOrEqual(madeAt(first.pid));
  for (const one of [first, second]) await host.remove(one);
});

test("a worker that is killed leaves none that the next one does not remove", async () => {
  const first = await start({ ...usual, process: { env: ["LAST=1"] } });
  await sandboxReady();
  await (await host.worker()).kill();
  await host.worker([first]);
  await host.remove(first);
  await host.stop();
  expect(leftovers(host)).toEqual([]);
});

test("the last slots of a host are given to whoever asks, whatever they are ready for", async () => {
  const [all, left] = [usableSlots, 12];
  const worker = await host.worker(
    Array.from({ length: all - left }, (_, slot) => ({ id: `ctr_${String(slot)}`, slot })),
  );
  const usualOne = await start({ ...usual, process: { env: ["LEFT=1"] } });
  // One as a build's, so that slots are ready for the next.
  const other: Wish = { hostname: null, limits: { disk: 3 * 2 ** 30 } };
  const otherOne = await start(other);
  // All of the others: one has a sandbox like the first.
  await expect.poll(() => host.preparedSlots(), { timeout: 10_000 }).toBe(left - 3);
  const taken: number[] = [];
  const spec = host.spec(0, { ...usual, process: { env: ["LEFT=2"] } });
  for (let n = 0; n < left - 2; n++) {
    taken.push(await worker.call<number>("takeSlot", ...(n < 4 ? [] : [spec])));
  }
  expect(new Set([...taken, usualOne.slot, otherOne.slot]).size).toBe(left);
  await expect(worker.call("takeSlot")).rejects.toMatchObject({ code: "no_capacity" });
  await expect(worker.call("takeSlot", spec)).rejects.toMatchObject({ code: "no_capacity" });
  const last = await startOn(taken.pop() ?? -1, { ...usual, process: { env: ["LEFT=2"] } });
  expect(await worker.call("probe", last.id)).toMatchObject({ state: "running" });
  for (const slot of taken) await worker.call("freeSlot", slot);
  for (const one of [usualOne, otherOne, last]) await host.remove(one);
  await host.stop();
  expect(leftovers(host)).toEqual([]);
});
