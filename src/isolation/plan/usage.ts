/** What a container uses, and what it may. Counters begin with its run. */
export interface Usage {
  /** RFC 3339. */
  at: string;
  cpu: { seconds: number; throttledSeconds: number };
  /** `used`: without what the kernel would give up at once, files that were not read lately. Bytes. */
  memory: { usedBytes: number; peakBytes: number | null; limitBytes: number };
  processes: { count: number; limit: number };
  /** As the container sees it; null: it has none. */
  network: {
    receivedBytes: number;
    receivedPackets: number;
    sentBytes: number;
    sentPackets: number;
  } | null;
  /** The writable layer. */
  disk: { usedBytes: number; limitBytes: number };
}

/** Reads a file of a container's cgroup; "" when there is none. On version 2 the controller has no say. */
export type ReadCgroup = (controller: string, file: string) => string;

type CgroupUsage = Pick<Usage, "cpu"> & { memory: Omit<Usage["memory"], "limitBytes">; processes: { count: number } };

/** What the files of a cgroup say, on either version. */
export function cgroupUsage(version: 1 | 2, read: ReadCgroup): CgroupUsage {
  const number = (controller: string, file: string): number => Number(read(controller, file));
  const field = (controller: string, file: string, name: string): number =>
    Number(new RegExp(`^${name} (\\d+)$`, "m").exec(read(controller, file))?.[1] ?? 0);
  const memory = (usage: number, inactive: number, peak: number) => ({
    usedBytes: Math.max(usage - inactive, 0),
    peakBytes: peak > 0 ? peak : null,
  });
  const processes = { count: number("pids", "pids.current") };
  return version === 2
    ? {
        cpu: {
          seconds: field("", "cpu.stat", "usage_usec") / 1e6,
          throttledSeconds: field("", "cpu.stat", "throttled_usec") / 1e6,
        },
        // memory.peak came with Linux 5.19.
        memory: memory(
          number("", "memory.current"),
          field("", "memory.stat", "inactive_file"),
          number("", "memory.peak"),
        ),
        processes,
      }
    : {
        cpu: {
          seconds: number("cpuacct", "cpuacct.usage") / 1e9,
          throttledSeconds: field("cpu", "cpu.stat", "throttled_time") / 1e9,
        },
        memory: memory(
          number("memory", "memory.usage_in_bytes"),
          field("memory", "memory.stat", "total_inactive_file"),
          number("memory", "memory.max_usage_in_bytes"),
        ),
        processes,
      };
}
