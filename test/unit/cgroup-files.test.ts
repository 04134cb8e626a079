import { describe, expect, test } from "vitest";
import { cgroupLimits, limitFiles } from "../../src/isolation/plan/limits.ts";
import { cgroupUsage } from "../../src/isolation/plan/usage.ts";

const MiB = 2 ** 20;
const reader = (files: Record<string, string>) => (controller: string, file: string) =>
  files[file] ?? files[`${controller}/${file}`] ?? "";

describe("usage", () => {
  test("of version 1", () => {
    const read = reader({
      "cpuacct/cpuacct.usage": "1500000000\n",
      "cpu/cpu.stat": "nr_periods 3\nnr_throttled 1\nthrottled_time 250000000\n",
      "memory/memory.usage_in_bytes": "3000\n",
      "memory/memory.max_usage_in_bytes": "4000\n",
      "memory/memory.stat": "cache 1\ninactive_file 7\ntotal_inactive_file 1000\n",
      "pids/pids.current": "5\n",
    });
    expect(cgroupUsage(1, read)).toEqual({
      cpu: { seconds: 1.5, throttledSeconds: 0.25 },
      memory: { usedBytes: 2000, peakBytes: 4000 },
      processes: { count: 5 },
    });
  });
  test("of version 2, without a peak before Linux 5.19", () => {
    const read = reader({
      "cpu.stat": "usage_usec 1500000\nuser_usec 1\nnr_throttled 1\nthrottled_usec 250000\n",
      "memory.current": "3000\n",
      "memory.stat": "anon 1\ninactive_file 1000\n",
      "pids.current": "5\n",
    });
    expect(cgroupUsage(2, read)).toEqual({
      cpu: { seconds: 1.5, throttledSeconds: 0.25 },
      memory: { usedBytes: 2000, peakBytes: null },
      processes: { count: 5 },
    });
  });
});

describe("limits", () => {
  const limits = { cpus: 0.5, memory: 64 * MiB, pids: 20 };

  test("are what the runtime is told", () => {
    const { cpu } = cgroupLimits(limits);
    const values = Object.fromEntries(
      limitFiles(1, reader({}), limits).map(({ file, value }) => [file, Number(value)]),
    );
    expect(values).toEqual({ "cpu.cfs_quota_us": cpu?.quota, "cpu.shares": cpu?.shares, "pids.max": 20 });
  });
  test.each([
    [32 * MiB, ["memory.memsw.limit_in_bytes", "memory.limit_in_bytes"]],
    [128 * MiB, ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]],
  ])("of version 1 with swap never fall below memory, from %i", (now, order) => {
    const read = reader({ "memory.limit_in_bytes": String(now), "memory.memsw.limit_in_bytes": String(now) });
    expect(
      limitFiles(1, read, limits)
        .map(({ file }) => file)
        .slice(0, 2),
    ).toEqual(order);
  });
  test("of version 2", () => {
    expect(limitFiles(2, reader({}), limits).map(({ file, value }) => [file, value])).toEqual([
      ["memory.max", String(64 * MiB)],
      ["cpu.max", "50000 100000"],
      ["cpu.weight", "20"],
      ["pids.max", "20"],
    ]);
  });
});
