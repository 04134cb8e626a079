import { readExit } from "./apply/monitor.ts";
import { isAlive } from "./apply/process.ts";
import { isAwaitingStart } from "./apply/runtime.ts";
import { readOwner, readProcess, readRun } from "./notes.ts";
import type { Parts } from "./parts.ts";
import { cgroupPath } from "./plan/layout.ts";

/** What the host has of a container, read from the kernel and the run files alone. */
export type SandboxState =
  | { state: "absent" }
  | { state: "running"; pid: number; startedAt: Date }
  /** `exitCode` null: the monitor was gone, so nobody knows how it ended. */
  | { state: "exited"; exitCode: number | null; oomKilled: boolean; finishedAt: Date; reason?: "monitor_lost" }
  /** A start or a release that was cut off: release it. */
  | { state: "leftover" };

/** The state of the slot that a container was linked to. */
export function probeSlot(parts: Parts, slot: number): SandboxState {
  const paths = parts.slot(slot);
  const run = readRun(paths.run);
  if (run === null || isAwaitingStart(parts.layout.runtimeRoot, paths.name)) return { state: "leftover" };
  const exited = exitOf(parts, slot);
  if (exited !== null) return exited;
  const monitor = readProcess(paths.monitor);
  // The order matters: a monitor that is gone after the process is has written what it knows.
  if (isAlive(run.process) || (monitor !== null && isAlive(monitor))) {
    return { state: "running", pid: run.process.pid, startedAt: new Date(run.startedAt) };
  }
  return (
    exitOf(parts, slot) ?? {
      state: "exited",
      exitCode: null,
      oomKilled: wasOomKilled(parts, slot),
      finishedAt: new Date(),
      reason: "monitor_lost",
    }
  );
}

/** Whether the container's monitor is gone although no exit was noted: its output is lost, and its exit code will be. */
export function isMonitorLost(parts: Parts, slot: number): boolean {
  const paths = parts.slot(slot);
  const monitor = readProcess(paths.monitor);
  return readRun(paths.run) !== null && (monitor === null || !isAlive(monitor)) && readExit(paths.exit) === null;
}

function exitOf(parts: Parts, slot: number): SandboxState | null {
  const note = readExit(parts.slot(slot).exit);
  return note === null ? null : { state: "exited", ...note, oomKilled: wasOomKilled(parts, slot) };
}

function wasOomKilled(parts: Parts, slot: number): boolean {
  const owner = readOwner(parts.slot(slot).owner);
  return owner !== null && parts.cgroups.oomKilled(cgroupPath(parts.layout, owner.projectId, slot));
}
