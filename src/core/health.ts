import type { Healthcheck } from "./image.ts";

/** Whether a container that has a health check works; `starting`: no check has told yet. */
export const healthStates = ["starting", "healthy", "unhealthy"] as const;
export type Health = (typeof healthStates)[number];

/** What a check does: a program in the container that must exit with 0, a GET that must answer 2xx or 3xx, a connection. */
export type HealthProbe = { command: string[] } | { http: { port: number; path: string } } | { tcp: { port: number } };

/** How a container is checked, defaults filled in; kept in `containers.spec`. */
export interface HealthSpec {
  probe: HealthProbe;
  /** Seconds from one check to the next. */
  intervalSeconds: number;
  timeoutSeconds: number;
  /** So many failures on end make it unhealthy. */
  retries: number;
  /** Until it is healthy, failures within this time after the start don't count. */
  startPeriodSeconds: number;
  /** Seconds between checks in that time. */
  startIntervalSeconds: number;
}

/**
 * Docker's names and, but for the last two, its defaults: the first check comes at once, and a start is watched closely,
 * since deployments wait for it.
 */
export const healthDefaults = {
  intervalSeconds: 30,
  timeoutSeconds: 30,
  retries: 3,
  startPeriodSeconds: 30,
  startIntervalSeconds: 1,
} as const;

/** How a container is checked: as it was asked (null: not at all), else as its image says. null: not at all. */
export function healthSpec(asked: HealthSpec | null | undefined, image: Healthcheck | undefined): HealthSpec | null {
  if (asked !== undefined) return asked;
  const [kind, ...args] = image?.Test ?? [];
  const command = kind === "CMD" ? args : kind === "CMD-SHELL" ? ["/bin/sh", "-c", args.join(" ")] : [];
  if (image === undefined || command.length === 0) return null;
  const seconds = (nanoseconds: number | undefined, otherwise: number) =>
    nanoseconds === undefined || nanoseconds === 0 ? otherwise : nanoseconds / 1e9;
  return {
    probe: { command },
    intervalSeconds: seconds(image.Interval, healthDefaults.intervalSeconds),
    timeoutSeconds: seconds(image.Timeout, healthDefaults.timeoutSeconds),
    retries: image.Retries === undefined || image.Retries === 0 ? healthDefaults.retries : image.Retries,
    startPeriodSeconds: seconds(image.StartPeriod, healthDefaults.startPeriodSeconds),
    startIntervalSeconds: seconds(image.StartInterval, healthDefaults.startIntervalSeconds),
  };
}

/** What the checks so far have told of a run. */
export interface HealthState {
  health: Health;
  /** Failures on end that count. */
  failures: number;
}

const inStartPeriod = (state: HealthState, spec: HealthSpec, ranMs: number) =>
  state.health === "starting" && ranMs < spec.startPeriodSeconds * 1000;

/** The state after a check that ended `ranMs` after the run's start. */
export function afterCheck(state: HealthState, passed: boolean, spec: HealthSpec, ranMs: number): HealthState {
  if (passed) return { health: "healthy", failures: 0 };
  if (inStartPeriod(state, spec, ranMs)) return state;
  const failures = state.failures + 1;
  return { health: failures >= spec.retries ? "unhealthy" : state.health, failures };
}

/** Milliseconds until the next check. */
export function nextCheckMs(state: HealthState, spec: HealthSpec, ranMs: number): number {
  return (inStartPeriod(state, spec, ranMs) ? spec.startIntervalSeconds : spec.intervalSeconds) * 1000;
}
