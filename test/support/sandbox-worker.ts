/**
 * The sandbox half of a worker, in a process of its own: it must run in the mount namespace of its instance, and tests
 * kill it. It takes calls as JSON lines and answers each with one; ends of containers come as `{"exit": id}`.
 */
import { createInterface } from "node:readline";
import { setImmediate as nextTurn } from "node:timers/promises";
import type { ExecRequest } from "../../src/isolation/exec.ts";
import type { SandboxConfig } from "../../src/isolation/parts.ts";
import type { Protection } from "../../src/isolation/plan/protection.ts";
import { Sandboxes } from "../../src/isolation/sandbox.ts";
import type { SandboxSpec } from "../../src/isolation/sandbox-spec.ts";
import { createLog } from "../../src/log.ts";

const config = JSON.parse(process.argv[2] ?? "") as SandboxConfig;
const sandboxes = await Sandboxes.open(config, createLog("worker", "error"));
sandboxes.onExit((id) => {
  print({ exit: id });
});

const calls = {
  start: (spec: SandboxSpec, without: Protection[]) => sandboxes.start(spec, { without: new Set(without) }),
  /** A command that is given up at once, or as soon as a timer can do it. */
  execAborted: (id: string, request: ExecRequest, afterMs: number) => {
    const abort = new AbortController();
    const result = sandboxes.exec(id, { ...request, signal: abort.signal });
    if (afterMs === 0) abort.abort();
    else setTimeout(() => abort.abort(), afterMs);
    return result;
  },
  /** Commands that come while a container is removed: how each ended. */
  execWhileRemoved: async ({ id, slot }: SandboxSpec, request: ExecRequest) => {
    const removed = new AbortController();
    const endOf = () =>
      sandboxes.exec(id, request).then(
        () => "ended",
        (error: unknown) => String(Reflect.get(error as object, "code")),
      );
    // Some are under way when it begins.
    const ends = Array.from({ length: 5 }, endOf);
    const removal = sandboxes.remove(id, slot).finally(() => {
      removed.abort();
    });
    while (!removed.signal.aborted) {
      await nextTurn();
      if (ends.length <= 40) ends.push(endOf());
    }
    await removal;
    return Promise.all(ends);
  },
} as const;

function print(value: object): void {
  process.stdout.write(`${JSON.stringify(value)}\n`);
}

print({ ready: true });
for await (const line of createInterface({ input: process.stdin })) {
  const { number, call, args } = JSON.parse(line) as { number: number; call: string; args: unknown[] };
  const target = call in calls ? calls : sandboxes;
  const method = Reflect.get(target, call) as (...args: unknown[]) => unknown;
  try {
    print({ number, value: (await method.apply(target, args)) ?? null });
  } catch (error) {
    const { message, code, cause } = error as { message: string; code?: string; cause?: unknown };
    print({ number, error: { message, code, cause: cause instanceof Error ? cause.message : null } });
  }
}
await sandboxes.close();
process.exit(0);
