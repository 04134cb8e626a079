import { describe, expect, test } from "vitest";
import {
  type DeployedContainer,
  type DeploymentView,
  type DeployTemplate,
  deployedHealth,
  deployedPorts,
  type HeldPort,
  nextDeployStep,
  planPorts,
} from "../../src/core/deploy.ts";
import type { ImageConfig } from "../../src/core/image.ts";

const held = (id: string, containerPort: number, hostPort: number, more: Partial<HeldPort> = {}): HeldPort => ({
  ...{ id, containerPort, hostPort, protocol: "tcp", hostAddress: null, ...more },
});
const auto = (containerPort: number) => ({ containerPort, protocol: "tcp" as const });

describe("the ports of a new container", () => {
  test("of the first deployment are all new", () => {
    expect(planPorts([auto(80)], [], [])).toEqual({ take: [], add: [auto(80)] });
  });

  test("are taken over from the one before: by host port, by container port, and by what is left", () => {
    const before = [held("a", 80, 8000), held("b", 81, 8001), held("c", 9000, 443)];
    const fixed = { ...auto(8080), hostPort: 8001 };
    expect(planPorts([auto(80), fixed], [], before)).toEqual({
      take: [
        { id: "b", containerPort: 8080 },
        { id: "a", containerPort: 80 },
        // Published by hand: clients go on reaching it.
        { id: "c", containerPort: 9000 },
      ],
      add: [],
    });
    // Another EXPOSE keeps the URL.
    expect(planPorts([auto(3000)], [], [held("a", 80, 8000)])).toEqual({
      take: [{ id: "a", containerPort: 3000 }],
      add: [],
    });
  });

  test("that it was made with are neither taken nor added again", () => {
    const fixed = { ...auto(80), hostPort: 9000 };
    expect(planPorts([fixed, auto(81)], [held("n", 80, 9000)], [held("a", 81, 8000)])).toEqual({
      take: [{ id: "a", containerPort: 81 }],
      add: [],
    });
  });

  test("differ by protocol and address", () => {
    const before = [held("a", 53, 53), held("b", 53, 53, { protocol: "udp", hostAddress: "127.0.0.1" })];
    const wanted = [{ containerPort: 53, hostPort: 53, protocol: "udp" as const, hostAddress: "127.0.0.1" }];
    expect(planPorts(wanted, [], before).take.map(({ id }) => id)).toEqual(["b", "a"]);
    const elsewhere = [{ containerPort: 53, hostPort: 53, protocol: "udp" as const }];
    expect(planPorts(elsewhere, [], before).add).toEqual(elsewhere);
  });
});

const template = (spec: Partial<DeployTemplate["spec"]> = {}): DeployTemplate => ({
  ...{ cpus: 1, memory: 1, pids: 1, disk: 1, labels: {} },
  spec: {
    env: {},
    publishAll: false,
    ports: [],
    restartPolicy: { name: "no", maxAttempts: 0 },
    stopTimeoutSeconds: 10,
    readOnlyRootfs: false,
    capabilities: { add: [], drop: [] },
    ...spec,
  },
});
const image = (config: ImageConfig["config"] = {}): ImageConfig => ({
  ...{ architecture: "amd64", os: "linux", rootfs: { type: "layers", diff_ids: [] } },
  config,
});

test("a version's ports are the template's, with publishAll the image's too, or else 8080", () => {
  const exposing = image({ ExposedPorts: { "80/tcp": {}, "53/udp": {}, "0": {}, junk: {} } });
  expect(deployedPorts(template({ ports: [auto(1)] }), exposing)).toEqual([auto(1)]);
  expect(deployedPorts(template({ ports: [auto(80)], publishAll: true }), exposing)).toEqual([
    auto(80),
    { containerPort: 53, protocol: "udp" },
  ]);
  expect(deployedPorts(template({ publishAll: true }), image())).toEqual([auto(8080)]);
});

test("a version without a health check is healthy when its first TCP port takes connections", () => {
  expect(deployedHealth(template(), image(), [auto(81)]).asked?.probe).toEqual({ tcp: { port: 81 } });
  expect(deployedHealth(template(), image(), [])).toEqual({});
  expect(deployedHealth(template({ healthcheck: null }), image(), [auto(81)])).toEqual({ asked: null });
  expect(deployedHealth(template(), image({ Healthcheck: { Test: ["CMD", "x"] } }), [auto(81)])).toEqual({});
});

const container = (more: Partial<DeployedContainer> = {}): DeployedContainer => ({
  wanted: "running",
  status: "running",
  restartCount: 0,
  health: null,
  exitCode: null,
  reason: null,
  detail: null,
  ranMs: 60_000,
  pendingPorts: 0,
  ...more,
});
const view = (more: Partial<DeploymentView> = {}): DeploymentView => ({
  ...{
    status: "starting",
    ageMs: 5_000,
    container: container(),
    refusedPort: null,
    namedPorts: [],
    others: [],
    otherSwitching: false,
    ...more,
  },
});
const step = (more: Partial<DeploymentView>) => nextDeployStep(view(more)).step;

describe("a deployment", () => {
  test("goes from its container to the switch, the end of the one before and its removal", () => {
    expect(step({ status: "pending", container: null })).toBe("create");
    expect(step({ container: container({ status: "starting" }) })).toBe("wait");
    expect(step({ container: container({ health: "starting" }) })).toBe("wait");
    expect(step({ container: container({ health: "healthy" }) })).toBe("switch");
    expect(step({ status: "switching", container: container({ pendingPorts: 1 }) })).toBe("wait");
    expect(step({ status: "switching" })).toBe("finish");
    const before = (status: "running" | "exited") => [{ wanted: "stopped" as const, status, stopTimeoutSeconds: 10 }];
    expect(step({ status: "succeeded", others: before("running") })).toBe("wait");
    expect(step({ status: "succeeded", others: before("exited") })).toBe("remove");
    expect(step({ status: "succeeded" })).toBe("done");
    expect(step({ status: "failed" })).toBe("done");
  });

  test("waits a while for a host that is away: for the ports, and for the end of the one before", () => {
    const unapplied = { status: "switching", container: container({ pendingPorts: 1 }) } as const;
    expect(step({ ...unapplied, ageMs: 4 * 60_000 })).toBe("wait");
    expect(nextDeployStep(view({ ...unapplied, ageMs: 6 * 60_000 }))).toEqual({ step: "finish", confirmed: false });
    expect(nextDeployStep(view({ status: "switching" }))).toEqual({ step: "finish", confirmed: true });

    const ending = [{ wanted: "stopped", status: "running", stopTimeoutSeconds: 600 } as const];
    expect(step({ status: "succeeded", others: ending, ageMs: 14 * 60_000 })).toBe("wait");
    const late = view({ status: "succeeded", others: ending, ageMs: 16 * 60_000 });
    expect(nextDeployStep(late)).toEqual({ step: "remove", overdue: true });
    const again = [{ wanted: "running", status: "running", stopTimeoutSeconds: 10 } as const];
    expect(step({ status: "succeeded", others: again, ageMs: 16 * 60_000 })).toBe("done");
  });

  test("waits for another one's switch, and without a health check for a second of running", () => {
    expect(step({ status: "pending", container: null, otherSwitching: true })).toBe("wait");
    expect(nextDeployStep(view({ container: container({ ranMs: 400 }) }))).toEqual({ step: "wait", atMostMs: 600 });
    expect(step({ container: container({ ranMs: 1_000 }) })).toBe("switch");
  });

  test("does not switch before the host has applied the ports that are new", () => {
    expect(step({ container: container({ health: "healthy", pendingPorts: 1 }) })).toBe("wait");
  });

  test.each([
    ["container_ended", null],
    ["container_ended", container({ wanted: "removed" })],
    ["container_ended", container({ wanted: "stopped", status: "stopping" })],
    ["container_ended", container({ status: "exited", exitCode: 3 })],
    ["container_ended", container({ status: "failed", reason: "command_not_found" })],
    ["container_ended", container({ restartCount: 1 })],
    ["host_port_in_use", container({ status: "failed", reason: "host_port_in_use" })],
    ["not_healthy", container({ health: "unhealthy", reason: "unhealthy" })],
  ])("fails with %s", (code, failed) => {
    expect(nextDeployStep(view({ container: failed }))).toMatchObject({ step: "fail", code });
  });

  test("tries the next port when a process of the host has one that the host was to choose", () => {
    const refused = { container: container({ status: "failed", reason: "host_port_in_use" }), refusedPort: 8001 };
    expect(nextDeployStep(view({ ...refused, namedPorts: [443] }))).toEqual({ step: "create", above: 8001 });
    expect(step({ ...refused, namedPorts: [8001] })).toBe("fail");
  });

  test("fails when it takes too long, but not once it has switched", () => {
    const slow = { ageMs: 16 * 60_000, container: container({ health: "starting" }) };
    expect(nextDeployStep(view(slow))).toMatchObject({ step: "fail", code: "deploy_timeout" });
    expect(step({ ...slow, status: "switching" })).toBe("finish");
  });
});
