import type { Resources } from "../../core/container.ts";
import type { Protection } from "./protection.ts";
import type { ReadCgroup } from "./usage.ts";

/** OCI runtime spec, config-linux.md, `resources`, as far as Berth uses it. */
export interface LinuxResources {
  devices: { allow: boolean; access: string }[];
  memory?: { limit: number; swap: number };
  cpu?: { shares: number; quota: number; period: number };
  pids?: { limit: number };
}

/** Limits that a container has whatever was asked: sizes in bytes. */
export const shmSize = 64 * 2 ** 20;
const openFiles = 65_536;

/** One scheduler period in microseconds; a quota of `cpus` periods per period is `cpus` cores. */
const period = 100_000;

/** The cgroup limits of a container. Memory and swap are equal: no swap, so that one container can't thrash a host. */
export function cgroupLimits(
  limits: Pick<Resources, "cpus" | "memory" | "pids">,
  without: ReadonlySet<Protection> = new Set(),
): LinuxResources {
  return {
    // Runtimes add what every container may use: null, zero, full, random, urandom, tty, ptmx and pts.
    devices: [{ allow: without.has("devices"), access: "rwm" }],
    ...(!without.has("memory") && { memory: { limit: limits.memory, swap: limits.memory } }),
    ...(!without.has("cpu") && {
      cpu: cpuLimit(limits.cpus),
    }),
    ...(!without.has("pids") && { pids: { limit: limits.pids } }),
  };
}

function cpuLimit(cpus: number): { shares: number; quota: number; period: number } {
  return {
    shares: Math.max(2, Math.min(262_144, Math.round(cpus * 1024))),
    quota: Math.max(1000, Math.round(cpus * period)),
    period,
  };
}

/** One value of a cgroup's; on version 2 the controller has no say. */
interface LimitFile {
  controller: string;
  file: string;
  value: string;
}

/**
 * The files that hold a container's limits, as cgroupLimits has a runtime write them, in the order in which they can be
 * written: version 1 wants memory with swap never below memory.
 */
export function limitFiles(
  version: 1 | 2,
  read: ReadCgroup,
  { cpus, memory, pids }: Pick<Resources, "cpus" | "memory" | "pids">,
): LimitFile[] {
  const { shares, quota } = cpuLimit(cpus);
  const processes = { controller: "pids", file: "pids.max", value: String(pids) };
  if (version === 2) {
    // The range of shares, 2 to 262,144, on that of weights, as runtimes convert it.
    const weight = 1 + Math.floor(((shares - 2) * 9999) / 262_142);
    return [
      { controller: "memory", file: "memory.max", value: String(memory) },
      { controller: "cpu", file: "cpu.max", value: `${String(quota)} ${String(period)}` },
      { controller: "cpu", file: "cpu.weight", value: String(weight) },
      processes,
    ];
  }
  const memoryFiles = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
    // A kernel that does not account swap has no second file.
    .filter((file) => read("memory", file) !== "")
    .map((file) => ({ controller: "memory", file, value: String(memory) }));
  return [
    ...(memory > Number(read("memory", "memory.limit_in_bytes")) ? memoryFiles.reverse() : memoryFiles),
    { controller: "cpu", file: "cpu.cfs_quota_us", value: String(quota) },
    { controller: "cpu", file: "cpu.shares", value: String(shares) },
    processes,
  ];
}

export interface Rlimit {
  type: string;
  soft: number;
  hard: number;
}

/**
 * Per-process limits (setrlimit(2)). A limit above the worker's own hard limit can't be set by a worker that lacks
 * CAP_SYS_RESOURCE, hence `hostOpenFiles`.
 */
export function processLimits(hostOpenFiles: number, without: ReadonlySet<Protection> = new Set()): Rlimit[] {
  if (without.has("rlimits")) return [];
  const files = Math.min(openFiles, hostOpenFiles);
  return [
    { type: "RLIMIT_NOFILE", soft: files, hard: files },
    { type: "RLIMIT_CORE", soft: 0, hard: 0 },
  ];
}
