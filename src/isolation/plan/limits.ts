import type { Resources } from "../../core/container.ts";
import type { Protection } from "./protection.ts";

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
      cpu: {
        shares: Math.max(2, Math.min(262_144, Math.round(limits.cpus * 1024))),
        quota: Math.max(1000, Math.round(limits.cpus * period)),
        period,
      },
    }),
    ...(!without.has("pids") && { pids: { limit: limits.pids } }),
  };
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
