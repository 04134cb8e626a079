import { rmSync } from "node:fs";
import { rm } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { hasCode } from "./apply/ffi.ts";
import { readExit } from "./apply/monitor.ts";
import { isAlive, signalProcess, waitGone } from "./apply/process.ts";
import { removeState } from "./apply/runtime.ts";
import { mountPlaces } from "./extra-mounts.ts";
import { readOwner, readProcess, readRun } from "./notes.ts";
import type { Parts } from "./parts.ts";
import { cgroupPath } from "./plan/layout.ts";

const SIGKILL = 9;
/** A monitor whose container has ended writes the rest of the log and the exit code, and then ends by itself. */
const monitorPatienceMs = 1000;

/**
 * Takes away everything of a run but its disk and its log, from whatever state it is in: each step asks the kernel or
 * the run files, never memory, and does nothing when there is nothing to do. The link from the container's id to the
 * slot goes last, so that as long as anything may be left it can be found by either.
 */
export async function releaseSlot(parts: Parts, slot: number, id: string | null): Promise<void> {
  const { reach, layout } = parts;
  const paths = parts.slot(slot);
  const owner = readOwner(paths.owner);
  const cgroup = owner === null ? null : cgroupPath(layout, owner.projectId, slot);

  // The monitor first: one that a dead worker left behind may be about to create its container.
  const monitorEnded = endMonitor(parts, slot);
  if (readExit(paths.exit) === null) await monitorEnded;
  reach("release.monitor");
  if (cgroup !== null) await parts.cgroups.kill(cgroup);
  reach("release.processes");
  for (const port of parts.firewall.ports()) if (port.slot === slot) await parts.ports.unpublish(port);
  reach("release.ports");
  parts.firewall.expel(slot);
  reach("release.expel");
  const detached = parts.network.detach(slot);
  // Both are awaited below, whatever happens before that.
  for (const later of [monitorEnded, detached]) later.catch(() => undefined);
  try {
    await whenFree(() => parts.mounts.unmountRootfs(paths.rootfs));
    reach("release.rootfs");
    for (const path of mountPlaces(paths)) await whenFree(() => parts.mounts.unmountRootfs(path));
    await whenFree(() => parts.disks.unmount(paths.disk.mount));
    reach("release.disk");
  } finally {
    await Promise.all([detached, monitorEnded]);
  }
  reach("release.network");
  if (cgroup !== null) await parts.cgroups.remove(cgroup);
  reach("release.cgroup");
  removeState(layout.runtimeRoot, paths.name);
  reach("release.runtime");
  rmSync(paths.exit, { force: true });
  reach("release.exit");
  rmSync(paths.dir, { recursive: true, force: true, maxRetries: 3, retryDelay: 10 });
  reach("release.directory");
  const link = id ?? owner?.id ?? null;
  if (link !== null) rmSync(`${layout.links}/${link}`, { force: true });
  reach("release.link");
}

/** Deletes what outlives a run: the writable layer and the log. To be called after releaseSlot. */
export async function removeDisk(parts: Parts, slot: number): Promise<void> {
  await parts.disks.remove(slot);
  parts.reach("remove.disk");
  await rm(parts.slot(slot).logDir, { recursive: true, force: true });
  parts.reach("remove.log");
}

async function endMonitor(parts: Parts, slot: number): Promise<void> {
  const monitor = readProcess(parts.slot(slot).monitor);
  if (monitor === null || !isAlive(monitor)) return;
  const run = readRun(parts.slot(slot).run);
  if (run !== null && !isAlive(run.process) && (await waitGone(monitor, monitorPatienceMs))) return;
  signalProcess(monitor, SIGKILL);
  if (!(await waitGone(monitor, 10_000))) throw new Error(`monitor ${String(monitor.pid)} does not end`);
}

/** A mount is busy for as long as the last of a killed container's processes takes to end. */
async function whenFree(unmount: () => Promise<void>): Promise<void> {
  for (let attempt = 0; ; attempt++) {
    try {
      await unmount();
      return;
    } catch (error) {
      if (!hasCode(error, "EBUSY") || attempt === 200) throw error;
      await sleep(5);
    }
  }
}
