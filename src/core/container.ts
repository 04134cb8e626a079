import type { HealthSpec } from "./health.ts";
import type { Placement } from "./placement.ts";
import type { PublishRequest } from "./port.ts";

/** What the API wants of a container. `removed` is final: the row goes once the host has nothing left of it. */
export type Wanted = "created" | "running" | "stopped" | "removed";

/** What was last seen of a container (docs: api). `exited` and `failed` are settled, as are `created` and `running`. */
export const containerStatuses = [
  "created",
  "starting",
  "running",
  "paused",
  "restarting",
  "stopping",
  "exited",
  "failed",
  "removing",
] as const;
export type ContainerStatus = (typeof containerStatuses)[number];

export interface RestartPolicy {
  name: "no" | "on-failure" | "always" | "unless-stopped";
  /** Only of `on-failure`; 0 is without a limit. */
  maxAttempts: number;
}

/** Limits of a container: cores, bytes, processes, bytes. */
export interface Resources {
  cpus: number;
  memory: number;
  pids: number;
  disk: number;
}

/** A container as it was asked for, defaults filled in; kept in `containers.spec`. Absent means "as the image says". */
export interface ContainerSpec {
  image: string;
  command?: string[];
  entrypoint?: string[];
  env: Record<string, string>;
  workingDirectory?: string;
  user?: string;
  /** Absent: defaultHostname. */
  hostname?: string;
  tty: boolean;
  openStdin: boolean;
  publishAll: boolean;
  ports: PublishRequest[];
  restartPolicy: RestartPolicy;
  stopSignal?: string;
  stopTimeoutSeconds: number;
  autoRemove: boolean;
  readOnlyRootfs: boolean;
  capabilities: { add: string[]; drop: string[] };
  pull: "missing" | "always" | "never";
  /** Absent: any host. */
  placement?: Placement;
  /** null: none, whatever the image says. */
  healthcheck?: HealthSpec | null;
}

/**
 * What a container is called inside when nobody named it: by its address, which it keeps as long as it lives. Not by its
 * name or id, so that a sandbox can be complete before it is known for which container.
 */
export function defaultHostname(ipv4: string | null): string {
  return ipv4 === null ? "localhost" : `ip-${ipv4.replaceAll(".", "-")}`;
}

/** What the worker saw when a run of a container ended. `exitCode` null: unknown. */
export interface RunEnd {
  exitCode: number | null;
  oomKilled: boolean;
}

/** A run of at least this long was no crash loop: its restart waits no longer than the first one. */
const steadyMs = 10_000;

/**
 * Whether a run of `ranMs` that ended by itself is started again, and after how many milliseconds; null: it stays ended.
 * Waits double from 100 ms to a minute, so that a crash loop costs little.
 */
export function restartDelay(policy: RestartPolicy, restartCount: number, ranMs: number, end: RunEnd): number | null {
  const again =
    policy.name === "always" ||
    policy.name === "unless-stopped" ||
    (policy.name === "on-failure" &&
      end.exitCode !== 0 &&
      (policy.maxAttempts === 0 || restartCount < policy.maxAttempts));
  if (!again) return null;
  return ranMs >= steadyMs ? 100 : Math.min(100 * 2 ** Math.min(restartCount, 20), 60_000);
}
