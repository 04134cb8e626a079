import type { Resources } from "../core/container.ts";
import { BerthError } from "../core/errors.ts";
import { hasCode } from "./apply/ffi.ts";
import type { Parts } from "./parts.ts";
import { limitFiles } from "./plan/limits.ts";
import { cgroupUsage } from "./plan/usage.ts";

/**
 * Gives a running container other limits. Idempotent. The memory limit is the first to be written, so when that is
 * refused all stay.
 * @throws BerthError `memory_in_use` when the container's processes hold more than the new limit: version 1 of cgroups
 * would refuse it as well, version 2 would kill them.
 */
export function setLimits(parts: Parts, cgroup: string, limits: Pick<Resources, "cpus" | "memory" | "pids">): void {
  const { cgroups } = parts;
  const read = (controller: string, file: string): string => cgroups.read(cgroup, controller, file) ?? "";
  const inUse = (cause?: unknown): BerthError =>
    new BerthError("memory_in_use", `The container uses more than ${String(limits.memory)} bytes of memory.`, {
      cause,
    });
  if (cgroupUsage(cgroups.version, read).memory.usedBytes > limits.memory) throw inUse();
  try {
    for (const { controller, file, value } of limitFiles(cgroups.version, read, limits)) {
      cgroups.write(cgroup, controller, file, value);
    }
  } catch (error) {
    throw hasCode(error, "EBUSY") ? inUse(error) : error;
  }
}
