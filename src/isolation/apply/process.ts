import { closeSync, readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { hasCode, pidfdOpen, pidfdSendSignal } from "./ffi.ts";

/** A process that can't be mistaken for a later one with its pid: `ticks` is when it began, in clock ticks since boot. */
export interface ProcessId {
  pid: number;
  ticks: number;
}

/** @returns null when there is no such process, or only its remains (a zombie). */
export function identify(pid: number): ProcessId | null {
  try {
    // The name, in parentheses, may hold anything; after it come the state (3rd field) and, as the 22nd, the start.
    const stat = readFileSync(`/proc/${String(pid)}/stat`, "latin1");
    const [state = "", ...rest] = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    return "ZX".includes(state) ? null : { pid, ticks: Number(rest[18]) };
  } catch (error) {
    if (hasCode(error, "ENOENT", "ESRCH")) return null;
    throw error;
  }
}

export function isAlive(process: ProcessId): boolean {
  return identify(process.pid)?.ticks === process.ticks;
}

/** Sends a signal to exactly this process. Returns false when it is gone. */
export function signalProcess(process: ProcessId, signal: number): boolean {
  let pidfd: number;
  try {
    pidfd = pidfdOpen(process.pid);
  } catch (error) {
    if (hasCode(error, "ESRCH", "EINVAL")) return false;
    throw error;
  }
  try {
    if (!isAlive(process)) return false;
    pidfdSendSignal(pidfd, signal);
    return true;
  } catch (error) {
    if (hasCode(error, "ESRCH")) return false;
    throw error;
  } finally {
    closeSync(pidfd);
  }
}

/** Waits for a process's end; false when it still runs after `ms`. */
export async function waitGone(process: ProcessId, ms: number): Promise<boolean> {
  const deadline = performance.now() + ms;
  for (let pause = 0.2; isAlive(process); pause = Math.min(pause * 2, 20)) {
    if (performance.now() > deadline) return false;
    await sleep(pause);
  }
  return true;
}
