/** The life of one container, with all that its control group does; prints what it saw as one line of JSON. */
import { readFileSync } from "node:fs";
import type { Protection } from "../../src/isolation/plan/protection.ts";
import { leftovers } from "./leftovers.ts";
import { TestHost } from "./sandboxes.ts";

const MiB = 2 ** 20;
const host = await TestHost.create();
const seen: Record<string, unknown> = {};
try {
  const worker = await host.worker();
  const spec = await host.start({
    process: { args: ["/bin/sh", "-c", "while true; do sleep 0.1; done"] },
    limits: { cpus: 0.5, memory: 64 * MiB, pids: 20 },
  });
  const shell = async (script: string): Promise<string[]> => {
    const request = { args: ["sh", "-c", `exec 2>&1; cd /sys/fs/cgroup; ${script}`] };
    return (await worker.call<{ stdout: string }>("exec", spec.id, request)).stdout.trim().split("\n");
  };
  const limits = "cat memory.max memory.swap.max cpu.max pids.max";
  seen["limits"] = await shell(limits);
  seen["group"] = await shell("cat /proc/self/cgroup");
  seen["made"] = await shell("mkdir mine");
  await shell("dd if=/dev/zero of=/dev/shm/fill bs=1M count=20");
  seen["usage"] = await worker.call("usage", spec.id, spec.limits);
  await worker.call("setLimits", spec.id, { cpus: 0.25, memory: 32 * MiB, pids: 10 });
  seen["changed"] = await shell(limits);
  seen["refused"] = await worker.call("setLimits", spec.id, { cpus: 0.25, memory: 16 * MiB, pids: 10 }).then(
    () => null,
    (error: unknown): unknown => Reflect.get(error as object, "code"),
  );

  const state = (): string => readFileSync(`/proc/${String(spec.pid)}/stat`, "utf8");
  await worker.call("pause", spec.id);
  const paused = state();
  const processes = await worker.call<{ pid: number }[]>("processes", spec.id);
  seen["stoodStill"] = paused === state();
  seen["first"] = processes[0]?.pid;
  await worker.call("resume", spec.id);
  await host.remove(spec);

  seen["outOfMemory"] = (await host.shell("tail /dev/zero", { limits: { memory: 16 * MiB } })).end;
  const open = "mknod /node c 10 237 && : </node && echo opened";
  const nodes: Protection[] = ["capabilities", "user", "seccomp"];
  seen["device"] = [(await host.shell(open, {}, nodes)).out, (await host.shell(open, {}, [...nodes, "devices"])).out];
  await host.stop();
  seen["left"] = leftovers(host);
} finally {
  await host.destroy();
}
console.log(`seen ${JSON.stringify(seen)}`);
