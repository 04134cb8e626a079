import type { ContainerSpec, ContainerStatus, Resources, Wanted } from "./container.ts";
import type { Health, HealthSpec } from "./health.ts";
import type { ImageConfig } from "./image.ts";
import { exposedPorts, type Protocol, type PublishRequest } from "./port.ts";

/**
 * The rules of deployments. A deployment starts a container of a new image beside the one that its source's ports lead
 * to, waits until it works, leads the ports to it and stops the old one. `nextDeployStep` is the whole order; each step is
 * one transaction and safe to repeat, so whoever drives a deployment may die anywhere.
 */
export const deploymentStatuses = ["pending", "starting", "switching", "succeeded", "failed"] as const;
export type DeploymentStatus = (typeof deploymentStatuses)[number];

/** The container that a source's builds become: as it was asked, defaults filled in, but for image and name. */
export interface DeployTemplate extends Resources {
  spec: Omit<ContainerSpec, "image" | "tty" | "openStdin" | "autoRemove" | "pull">;
  labels: Record<string, string>;
}

/** A published port of a container. hostAddress null: all of the host's. */
export interface HeldPort {
  id: string;
  containerPort: number;
  hostPort: number;
  protocol: Protocol;
  hostAddress: string | null;
}

/** The port of an image that exposes none and is told no other. */
const usualPort = 8080;

/** The ports that a version is reached at: the template's, with `publishAll` the image's too, or else 8080. */
export function deployedPorts({ spec }: DeployTemplate, image: ImageConfig): PublishRequest[] {
  if (!spec.publishAll) return spec.ports;
  const ports = [...spec.ports, ...exposedPorts(image, spec.ports)];
  return ports.length > 0 ? ports : [{ containerPort: usualPort, protocol: "tcp" }];
}

/**
 * How a new container's health is told: as the template or the image says (`asked` is undefined then), else by whether
 * its first TCP port takes connections, so that clients are not led to a server that still starts. null: it need only run.
 */
export function deployedHealth(
  { spec }: DeployTemplate,
  image: ImageConfig,
  ports: readonly PublishRequest[],
): { asked?: HealthSpec | null } {
  if (spec.healthcheck !== undefined) return { asked: spec.healthcheck };
  if (image.config?.Healthcheck !== undefined) return {};
  const port = ports.find(({ protocol }) => protocol === "tcp")?.containerPort;
  if (port === undefined) return {};
  return {
    asked: {
      probe: { tcp: { port } },
      intervalSeconds: 10,
      timeoutSeconds: 5,
      retries: 3,
      startPeriodSeconds: 60,
      startIntervalSeconds: 0.1,
    },
  };
}

/** How a container gets its ports: those that it takes over from the container before it, and new ones. */
export interface PortPlan {
  take: { id: string; containerPort: number }[];
  add: PublishRequest[];
}

/**
 * All ports of the container before go on, also those that were published by hand: a deployment takes no address from
 * clients. A wanted port is the one with its host port, else one with its container port, else one that nothing else
 * wants, so that a new `EXPOSE` keeps the URL.
 */
export function planPorts(
  wanted: readonly PublishRequest[],
  own: readonly HeldPort[],
  before: readonly HeldPort[],
): PortPlan {
  const free = { own: [...own], before: [...before] };
  const plan: PortPlan = { take: [], add: [] };
  const claim = (port: PublishRequest, fits: (held: HeldPort) => boolean): boolean => {
    const same = (held: HeldPort) => held.protocol === port.protocol && fits(held);
    const mine = free.own.findIndex(same);
    if (mine >= 0) return free.own.splice(mine, 1).length > 0;
    const theirs = free.before.findIndex(same);
    const [taken] = theirs < 0 ? [] : free.before.splice(theirs, 1);
    if (taken !== undefined) plan.take.push({ id: taken.id, containerPort: port.containerPort });
    return taken !== undefined;
  };
  const anywhere = (address: string | undefined) => (address === undefined || address === "0.0.0.0" ? null : address);
  const fixed = wanted.filter((port) => port.hostPort !== undefined);
  const automatic = wanted.filter((port) => port.hostPort === undefined);
  for (const port of fixed) {
    const { hostPort } = port;
    const address = anywhere(port.hostAddress);
    if (!claim(port, (held) => held.hostPort === hostPort && held.hostAddress === address)) plan.add.push(port);
  }
  const unplaced = automatic.filter((port) => !claim(port, (held) => held.containerPort === port.containerPort));
  for (const port of unplaced) if (!claim(port, () => true)) plan.add.push(port);
  for (const port of free.before) plan.take.push({ id: port.id, containerPort: port.containerPort });
  return plan;
}

/** A deployment's container, or the one before, as rows show it. */
export interface DeployedContainer {
  wanted: Wanted;
  status: ContainerStatus;
  restartCount: number;
  health: Health | null;
  exitCode: number | null;
  reason: string | null;
  detail: string | null;
  /** Milliseconds since its run began. */
  ranMs: number;
  /** How many of its ports the host has not applied. */
  pendingPorts: number;
}

export interface DeploymentView {
  status: DeploymentStatus;
  /** Milliseconds since it came to its status. */
  ageMs: number;
  /** null: not made yet, or gone. */
  container: DeployedContainer | null;
  /** The host port that a process of the host has, when the container could not start for that. */
  refusedPort: number | null;
  /** Host ports that the template names. */
  namedPorts: number[];
  /** What else is left of the source's earlier containers. */
  others: { wanted: Wanted; status: ContainerStatus; stopTimeoutSeconds: number }[];
  /** Another deployment of the source is between its switch and its end. */
  otherSwitching: boolean;
}

export type DeployStep =
  /**
   * Make the container, on its host beside the one before, and in place of one that could not start; `above`: ports that
   * the host is to choose are above this one, which is not free after all.
   */
  | { step: "create"; above: number }
  /** Lead the ports to it. */
  | { step: "switch" }
  /**
   * It serves: record it, and ask the containers before it to stop. `confirmed` false: the host has not said so in all the
   * time that it had. The rows are what it does when it is back, so that there is no way back to the one before.
   */
  | { step: "finish"; confirmed: boolean }
  /** Remove those of them that have ended, or when `overdue` all: their host does it when it is back. */
  | { step: "remove"; overdue: boolean }
  | { step: "wait"; atMostMs: number }
  /** It never came to serve; the one before goes on. */
  | { step: "fail"; code: DeployFailure; detail: string }
  | { step: "done" };

export type DeployFailure = "container_ended" | "not_healthy" | "deploy_timeout" | "host_port_in_use";

/** A container without a health check works when it has run for so long. */
const steadyMs = 1_000;
/** A pull of its layers and a slow start included. */
const patienceMs = 15 * 60_000;
/** A host applies ports, and ends a container whose stop timeout is over, in milliseconds: one that takes so long is away. */
const hostPatienceMs = 5 * 60_000;
/** Wake-ups may be lost: so often rows are looked at without one. */
const pollMs = 1_000;

const live: readonly ContainerStatus[] = ["starting", "running", "paused", "stopping", "restarting"];

export function nextDeployStep(view: DeploymentView): DeployStep {
  const { container } = view;
  const wait: DeployStep = { step: "wait", atMostMs: pollMs };
  switch (view.status) {
    case "failed":
      return { step: "done" };
    case "pending":
      return view.otherSwitching ? wait : { step: "create", above: 0 };
    case "starting":
      return whileStarting(view, container) ?? wait;
    case "switching": {
      const applied = container === null || container.pendingPorts === 0 || !live.includes(container.status);
      return applied || view.ageMs > hostPatienceMs ? { step: "finish", confirmed: applied } : wait;
    }
    case "succeeded": {
      // One that somebody has started again since is theirs.
      const ending = view.others.filter(({ wanted }) => wanted === "stopped");
      if (ending.length === 0) return { step: "done" };
      const stopSeconds = Math.max(...ending.map(({ stopTimeoutSeconds }) => stopTimeoutSeconds));
      if (view.ageMs > stopSeconds * 1_000 + hostPatienceMs) return { step: "remove", overdue: true };
      return ending.some(({ status }) => !live.includes(status)) ? { step: "remove", overdue: false } : wait;
    }
  }
}

/** With one full stop at its end. */
const sentence = (text: string) => `${text.replace(/\.$/, "")}.`;

function whileStarting(view: DeploymentView, container: DeployedContainer | null): DeployStep | null {
  const fail = (code: DeployFailure, detail: string): DeployStep => ({ step: "fail", code, detail });
  if (container === null || container.wanted === "removed") {
    return fail("container_ended", "The new container was removed before it served.");
  }
  const { status, health, exitCode, reason, detail } = container;
  if (reason === "host_port_in_use") {
    const { refusedPort, namedPorts } = view;
    const chosen = refusedPort !== null && !namedPorts.includes(refusedPort);
    return chosen
      ? { step: "create", above: refusedPort }
      : fail(reason, detail ?? "A process of the host has the port.");
  }
  if (status === "exited" || status === "failed" || status === "restarting" || container.restartCount > 0) {
    const how = exitCode === null ? (detail ?? reason ?? "nobody saw how") : `with exit code ${exitCode}`;
    return fail("container_ended", `The new container ended before it served: ${sentence(how)}`);
  }
  if (container.wanted !== "running") return fail("container_ended", "The new container was stopped before it served.");
  if (health === "unhealthy")
    return fail("not_healthy", `The new container never became healthy: ${sentence(detail ?? "")}`);
  if (status === "running" && container.pendingPorts === 0) {
    if (health === "healthy") return { step: "switch" };
    if (health === null) {
      return container.ranMs >= steadyMs
        ? { step: "switch" }
        : { step: "wait", atMostMs: Math.ceil(steadyMs - container.ranMs) };
    }
  }
  return view.ageMs > patienceMs
    ? fail("deploy_timeout", `The new container did not come to serve within ${patienceMs / 60_000} minutes.`)
    : null;
}
