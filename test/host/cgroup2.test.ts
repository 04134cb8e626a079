import { join } from "node:path";
import { expect, test } from "vitest";
import { findKernel, runInMachine } from "../support/vm.ts";

// Debian's own kernel in an emulator: a host with nothing but cgroup version 2, and older than most of what is tried
// first (overlays of descriptors, EROFS from files).

const MiB = 2 ** 20;
const kernel = findKernel();

test.skipIf(kernel === null)(
  "a container lives on Debian's kernel with cgroup version 2 alone",
  { timeout: 600_000 },
  async () => {
    if (kernel === null) return;
    const lines = await runInMachine(kernel, join(import.meta.dirname, "../support/container-life-worker.ts"));
    const line = lines.find((text) => text.startsWith("seen "));
    expect(line, lines.join("\n")).toBeDefined();
    expect(JSON.parse(line?.slice("seen ".length) ?? "")).toMatchObject({
      limits: [String(64 * MiB), "0", "50000 100000", "20"],
      group: ["0::/"],
      made: ["mkdir: can't create directory 'mine': Read-only file system"],
      usage: { processes: { limit: 20 }, memory: { limitBytes: 64 * MiB, peakBytes: expect.any(Number) as number } },
      changed: [String(32 * MiB), "0", "25000 100000", "10"],
      refused: "memory_in_use",
      stoodStill: true,
      first: 1,
      outOfMemory: { exitCode: 137, oomKilled: true },
      device: [expect.stringContaining("not permitted") as string, "opened\n"],
      left: [],
    });
  },
);
