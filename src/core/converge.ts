import { type ContainerStatus, type RestartPolicy, type RunEnd, restartDelay, type Wanted } from "./container.ts";

/**
 * The rules of the one driver of containers. `nextStep` compares what is wanted with what was recorded and what the
 * host really has, and names one step; the worker takes it and asks again, until `settled`. Every step is safe to
 * repeat, so a worker may die anywhere: the next one asks the same question and goes on.
 */
export interface ContainerView {
  wanted: Wanted;
  /** Raised by each start and restart that a client asked for. */
  wantedRun: number;
  /** Whether the running container is to stand still; the end of a run ends this wish. */
  wantedPaused: boolean;
  /** The last run that was begun; written before its first effect. */
  run: number;
  status: ContainerStatus;
  restartPolicy: RestartPolicy;
  restartCount: number;
  /** Milliseconds since the last run began; 0 before the first. */
  ranMs: number;
  /** Milliseconds until the automatic restart; null: none is due. */
  restartInMs: number | null;
  hasSignals: boolean;
}

/** What the host has of a container: probed from the kernel and run files, never remembered. */
export type Seen =
  | { state: "absent" }
  /** Some effects of a start or a release that was cut off. */
  | { state: "leftover" }
  | { state: "running" }
  | ({ state: "exited" } & RunEnd);

/** How far a stop is that this worker began; null: none is under way. */
export type StopProgress = { expired: boolean } | null;

export type Step =
  | { step: "settled" }
  /** Begin run `run`: record it, then its effects. */
  | { step: "start"; run: number; restart: boolean }
  /** It runs, but the row does not say so: the worker died between the effect and the record. */
  | { step: "adopt" }
  | { step: "deliverSignals" }
  | { step: "pause" }
  | { step: "resume" }
  | { step: "beginStop" }
  | { step: "awaitStop" }
  | { step: "kill" }
  /** It ended: record how, and when it starts again by itself, if it does. Its release comes after the record. */
  | { step: "recordEnd"; end: RunEnd; restartInMs: number | null }
  /** Take the run's kernel objects away; the writable layer and the log stay. */
  | { step: "release" }
  | { step: "awaitRestart"; inMs: number }
  /** A restart was due when a stop came; the container has ended already. */
  | { step: "cancelRestart" }
  /** Nothing of it may remain: release, writable layer, log, ports, then the row. */
  | { step: "erase" };

const live: readonly ContainerStatus[] = ["starting", "running", "paused", "stopping"];

export function nextStep(view: ContainerView, seen: Seen, stop: StopProgress): Step {
  const running = seen.state === "running";
  if (view.wanted === "removed") return running ? { step: "kill" } : { step: "erase" };

  const newRunWanted = view.wanted === "running" && view.run < view.wantedRun;
  if (running) {
    if (view.wanted !== "running" || newRunWanted) {
      // What was asked first comes first: a SIGKILL before the stop that it also means.
      if (stop === null) return { step: view.hasSignals ? "deliverSignals" : "beginStop" };
      return stop.expired ? { step: "kill" } : view.hasSignals ? { step: "deliverSignals" } : { step: "awaitStop" };
    }
    if (view.status !== "running" && view.status !== "paused") return { step: "adopt" };
    if (view.hasSignals) return { step: "deliverSignals" };
    if (view.wantedPaused !== (view.status === "paused")) return { step: view.wantedPaused ? "pause" : "resume" };
    return { step: "settled" };
  }

  // A start that was cut off before the process existed is begun again; it never ran.
  if (view.status === "starting" && seen.state !== "exited" && view.wanted === "running") {
    return { step: "start", run: Math.max(view.run, view.wantedRun), restart: false };
  }
  if (live.includes(view.status)) {
    const end: RunEnd =
      seen.state === "exited"
        ? { exitCode: seen.exitCode, oomKilled: seen.oomKilled }
        : { exitCode: null, oomKilled: false };
    const again = view.wanted === "running" && !newRunWanted;
    return {
      step: "recordEnd",
      end,
      restartInMs: again ? restartDelay(view.restartPolicy, view.restartCount, view.ranMs, end) : null,
    };
  }
  if (newRunWanted) return { step: "start", run: view.wantedRun, restart: false };
  if (seen.state !== "absent") return { step: "release" };
  if (view.wanted === "running" && view.status === "restarting" && view.restartInMs !== null) {
    return view.restartInMs > 0
      ? { step: "awaitRestart", inMs: view.restartInMs }
      : { step: "start", run: view.run, restart: true };
  }
  if (view.status === "restarting") return { step: "cancelRestart" };
  return { step: "settled" };
}

/** Why a run ended, when its exit code does not say it; null: there is no more to say, or it never ran. */
export function endReason(status: ContainerStatus, seen: Seen, end: RunEnd, rebooted: boolean): string | null {
  if (end.oomKilled) return "oom_killed";
  if (seen.state === "exited") return end.exitCode === null ? "monitor_lost" : null;
  if (status === "starting") return null;
  return rebooted ? "host_rebooted" : "host_stopped";
}
