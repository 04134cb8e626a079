import { describe, expect, it } from "vitest";
import type { ContainerStatus } from "../../src/core/container.ts";
import { type ContainerView, endReason, nextStep, type Seen } from "../../src/core/converge.ts";

const view = (over: Partial<ContainerView>): ContainerView => ({
  wanted: "running",
  wantedRun: 1,
  wantedPaused: false,
  run: 1,
  status: "running",
  restartPolicy: { name: "no", maxAttempts: 0 },
  restartCount: 0,
  restartInMs: null,
  ranMs: 0,
  hasSignals: false,
  ...over,
});
const absent: Seen = { state: "absent" };
const running: Seen = { state: "running" };
const exited: Seen = { state: "exited", exitCode: 3, oomKilled: false };
const leftover: Seen = { state: "leftover" };
const always = { name: "always", maxAttempts: 0 } as const;

describe("nextStep", () => {
  it.each([
    ["a new container starts", view({ run: 0, status: "created" }), absent, "start"],
    ["created only stays", view({ wanted: "created", wantedRun: 0, run: 0, status: "created" }), absent, "settled"],
    ["running as wanted", view({}), running, "settled"],
    ["died before the record: adopted", view({ status: "starting" }), running, "adopt"],
    ["died before the process: begun again", view({ status: "starting" }), leftover, "start"],
    ["a stop asks first", view({ wanted: "stopped" }), running, "beginStop"],
    ["a restart stops first", view({ wantedRun: 2 }), running, "beginStop"],
    ["a restart starts the next run", view({ wantedRun: 2, status: "exited" }), absent, "start"],
    ["signals are delivered", view({ hasSignals: true }), running, "deliverSignals"],
    ["a pause is made", view({ wantedPaused: true }), running, "pause"],
    ["a pause that was recorded stays", view({ wantedPaused: true, status: "paused" }), running, "settled"],
    ["a pause ends", view({ status: "paused" }), running, "resume"],
    ["a signal comes before a pause", view({ wantedPaused: true, hasSignals: true }), running, "deliverSignals"],
    [
      "what is paused is stopped",
      view({ wantedPaused: true, status: "paused", wanted: "stopped" }),
      running,
      "beginStop",
    ],
    ["an end is recorded", view({}), exited, "recordEnd"],
    ["an end without a trace is recorded as unknown", view({}), absent, "recordEnd"],
    ["a start that a stop overtook ends", view({ wanted: "stopped", status: "starting" }), absent, "recordEnd"],
    ["what an ended run left is released", view({ status: "exited" }), leftover, "release"],
    ["a failed start is not tried again by itself", view({ status: "failed" }), absent, "settled"],
    ["a restart waits", view({ status: "restarting", restartInMs: 50, restartPolicy: always }), absent, "awaitRestart"],
    [
      "a restart that is due starts",
      view({ status: "restarting", restartInMs: -1, restartPolicy: always }),
      absent,
      "start",
    ],
    ["a stop ends a wait", view({ wanted: "stopped", status: "restarting", restartInMs: 50 }), absent, "cancelRestart"],
    ["removing kills", view({ wanted: "removed" }), running, "kill"],
    ["removing erases", view({ wanted: "removed" }), exited, "erase"],
  ] as const)("%s", (_, container, seen, step) => {
    expect(nextStep(container, seen, null).step).toBe(step);
  });

  it("kills when the time to stop is up", () => {
    const stopping = view({ wanted: "stopped", status: "stopping" });
    expect(nextStep(stopping, running, { expired: false }).step).toBe("awaitStop");
    expect(nextStep(stopping, running, { expired: true }).step).toBe("kill");
  });

  it("restarts by its policy, with a growing wait", () => {
    const end = nextStep(view({ restartPolicy: always, restartCount: 3 }), exited, null);
    expect(end).toEqual({ step: "recordEnd", end: { exitCode: 3, oomKilled: false }, restartInMs: 800 });
  });

  it("restarts at once what had run for long", () => {
    const end = nextStep(view({ restartPolicy: always, restartCount: 9, ranMs: 10_000 }), exited, null);
    expect(end).toMatchObject({ restartInMs: 100 });
  });

  it("does not restart what a client stopped", () => {
    const end = nextStep(view({ restartPolicy: always, wanted: "stopped", status: "stopping" }), exited, null);
    expect(end).toMatchObject({ step: "recordEnd", restartInMs: null });
  });

  // Whatever the row says and the host shows, taking the named steps one after the other comes to rest.
  it("always comes to rest", () => {
    const statuses: ContainerStatus[] = [
      "created",
      "starting",
      "running",
      "restarting",
      "stopping",
      "exited",
      "failed",
    ];
    for (const wanted of ["created", "running", "stopped", "removed"] as const)
      for (const status of statuses)
        for (const seen of [absent, leftover, running, exited])
          for (const run of [0, 1])
            for (const policy of ["no", "always"] as const) {
              let state: ContainerView = view({ wanted, status, run, restartPolicy: { name: policy, maxAttempts: 0 } });
              let host: Seen = seen;
              let stop: { expired: boolean } | null = null;
              let steps = 0;
              for (; steps < 20; steps++) {
                const step = nextStep(state, host, stop);
                if (step.step === "settled" || step.step === "erase" || step.step === "awaitRestart") break;
                if (step.step === "start") [state, host] = [{ ...state, run: step.run, status: "running" }, running];
                if (step.step === "adopt") state = { ...state, status: "running" };
                if (step.step === "beginStop") [state, stop] = [{ ...state, status: "stopping" }, { expired: true }];
                if (step.step === "kill") host = exited;
                if (step.step === "release") host = absent;
                if (step.step === "cancelRestart") state = { ...state, status: "exited" };
                if (step.step === "recordEnd") {
                  const { restartInMs } = step;
                  state = { ...state, status: restartInMs === null ? "exited" : "restarting", restartInMs };
                  host = absent;
                }
              }
              expect(steps, `${wanted} ${status} ${seen.state} ${String(run)} ${policy}`).toBeLessThan(20);
            }
  });
});

describe("endReason", () => {
  const unknown = { exitCode: null, oomKilled: false };

  it("says why only when the exit code does not", () => {
    expect(endReason("running", exited, exited, false)).toBeNull();
    expect(endReason("running", exited, { exitCode: 137, oomKilled: true }, false)).toBe("oom_killed");
    expect(endReason("running", exited, unknown, false)).toBe("monitor_lost");
    expect(endReason("running", absent, unknown, false)).toBe("host_stopped");
    expect(endReason("stopping", absent, unknown, true)).toBe("host_rebooted");
  });

  it("does not blame the host for a start that a stop overtook", () => {
    expect(endReason("starting", absent, unknown, false)).toBeNull();
    expect(endReason("starting", leftover, unknown, true)).toBeNull();
  });
});
