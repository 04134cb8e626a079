import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { expect, test } from "vitest";
import { leftovers } from "../support/leftovers.ts";
import { claimNumber, claimPorts, type PortRange, removeKilled } from "../support/ownership.ts";
import type { TestHost } from "../support/sandboxes.ts";

const script = join(import.meta.dirname, "../support/killed-run-worker.ts");

test("what a run has is its own while it lives, and removed by the next when it was killed", async () => {
  const run = spawn(process.execPath, [script], { stdio: ["ignore", "pipe", "inherit"] });
  const ended = once(run, "exit");
  try {
    const [line] = (await once(createInterface({ input: run.stdout }), "line")) as [string];
    const { config, holders, number, ports } = JSON.parse(line) as {
      config: TestHost["config"];
      holders: number[];
      number: number;
      ports: PortRange;
    };
    const before = leftovers({ config });
    for (const kind of ["process", "mount", "cgroup", "link", "element", "loop", "file"])
      expect(before.some((each) => each.startsWith(`${kind} `))).toBe(true);
    expect(number).toBe(0);
    expect(() => claimNumber(config.instance, 1)).toThrow("none of 1 is free");
    expect(claimPorts()).not.toEqual(ports);
    await removeKilled();
    // Without what is prepared ahead, which comes and goes.
    const container = (lines: string[]) => lines.filter((each) => each.includes("/containers/"));
    expect(container(leftovers({ config }))).toEqual(container(before));

    run.kill("SIGKILL");
    await ended;
    expect(leftovers({ config })).not.toEqual([]);
    // A child that it had forked just then has its lock until it becomes another program.
    const left = async (): Promise<string[]> => {
      await removeKilled();
      return leftovers({ config });
    };
    await expect.poll(left).toEqual([]);
    expect([config.dataDir, config.runDir].filter((path) => existsSync(path))).toEqual([]);
    await expect.poll(() => holders.filter((pid) => existsSync(`/proc/${pid}`))).toEqual([]);
    expect(claimNumber(config.instance, 1)).toBe(0);
  } finally {
    run.kill("SIGKILL");
    await ended;
    await removeKilled();
  }
});
