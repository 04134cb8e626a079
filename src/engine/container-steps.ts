import { rm } from "node:fs/promises";
import { constants } from "node:os";
import { endReason, nextStep, type Seen, type Step, type StopProgress } from "../core/converge.ts";
import { toBerthError } from "../core/errors.ts";
import { healthSpec } from "../core/health.ts";
import { signalNumber } from "../core/signals.ts";
import type { InboxContainer } from "../db/inbox.ts";
import { armFailpoint, type ReachFailpoint } from "../isolation/failpoint.ts";
import { ContainerRecords } from "./container-records.ts";
import { ContainerStart, type Drive, firstHealth, logPath } from "./container-start.ts";
import { HealthChecks } from "./health.ts";
import type { Services } from "./services.ts";

/**
 * The steps that lead a container from what it is to what is wanted; which one comes next is core/converge.ts's rule.
 * What is remembered between steps only spares work: without it a step is taken again, to the same end.
 */
export class ContainerSteps {
  readonly #services: Services;
  readonly #rebooted: boolean;
  readonly #reach: ReachFailpoint;
  readonly #records: ContainerRecords;
  readonly #begin: ContainerStart;
  readonly #health: HealthChecks;
  readonly #stops = new Map<string, { deadline: number }>();
  /** Containers whose ports this process holds. */
  readonly #published = new Set<string>();

  /** @param more.look has a container looked at again after so many milliseconds */
  constructor(services: Services, more: { rebooted: boolean; look: (id: string, inMs: number) => void }) {
    const { connection, host, sandboxes, log } = services;
    this.#services = services;
    this.#rebooted = more.rebooted;
    this.#reach = armFailpoint(services.config.failpoint);
    this.#records = new ContainerRecords(connection.sql, { hostId: host.id, session: host.session }, (id) => {
      this.#published.delete(id);
      more.look(id, 0);
    });
    this.#begin = new ContainerStart(services, this.#records, this.#reach);
    this.#health = new HealthChecks({
      exec: (id, request) => sandboxes.exec(id, request),
      record: (container, health, why) => this.#records.health(container, health, why),
      failed: (error, id) => {
        log.warn({ err: error, container: id }, "a container's health was not recorded");
        more.look(id, 1000);
      },
    });
  }

  /** Ends what goes on between steps. */
  close(): void {
    this.#health.close();
  }

  /**
   * Takes one step. `more`: there may be another one at once. `done`: nothing to do until the next wake, or until so many
   * milliseconds have passed.
   */
  async take(container: InboxContainer, drive: Drive): Promise<"more" | "done" | { lookInMs: number }> {
    const { sandboxes } = this.#services;
    const { id } = container;
    const seen = sandboxes.probe(id);
    if (seen.state !== "absent" && (await this.#begin.recordAgain(container))) return "more";
    const step = nextStep(
      { ...container, restartPolicy: container.spec.restartPolicy, hasSignals: container.signals.length > 0 },
      seen,
      this.#stopProgress(id),
    );
    if (step.step !== "settled" && step.step !== "deliverSignals") this.#health.forget(id);
    switch (step.step) {
      case "settled":
        if (seen.state === "running" && container.status === "running") this.#watch(container);
        await this.#settle(container, seen);
        return "done";
      case "start":
        this.#stops.delete(id);
        // First: when its ports are led elsewhere meanwhile, it is taken out again, and publishes them anew.
        this.#published.add(id);
        if (!(await this.#begin.start(container, step, seen, drive))) this.#published.delete(id);
        return "more";
      case "adopt":
        await this.#records.seen(
          container,
          {
            status: "running",
            reason: null,
            detail: null,
            started: true,
            health: firstHealth(container, container.image),
          },
          "container.started",
        );
        return "more";
      case "deliverSignals":
        for (const signal of container.signals) sandboxes.signal(id, signal);
        // What stands still does not even end (freezer of cgroup version 1).
        if (container.signals.includes(constants.signals.SIGKILL)) await sandboxes.resume(id);
        await this.#records.seen(container, { signalsDelivered: container.signals.length });
        return "more";
      case "pause":
        await sandboxes.pause(id);
        await this.#records.seen(container, { status: "paused" }, "container.paused");
        return "more";
      case "resume":
        await sandboxes.resume(id);
        await this.#records.seen(container, { status: "running" }, "container.unpaused");
        return "more";
      case "beginStop": {
        const seconds = container.spec.stopTimeoutSeconds;
        this.#stops.set(id, { deadline: performance.now() + seconds * 1000 });
        await this.#records.seen(container, { status: "stopping" });
        this.#reach("converge.stopping");
        sandboxes.signal(id, stopSignal(container));
        await sandboxes.resume(id);
        this.#reach("converge.asked");
        return "more";
      }
      case "awaitStop":
        return { lookInMs: Math.max((this.#stops.get(id)?.deadline ?? 0) - performance.now(), 0) };
      case "kill":
        sandboxes.signal(id, constants.signals.SIGKILL);
        await sandboxes.resume(id);
        // Woken by the exit; looked at again in case its notice is lost.
        return { lookInMs: 1000 };
      case "recordEnd":
        await this.#recordEnd(container, step, seen);
        return "more";
      case "release":
        await sandboxes.release(id);
        this.#reach("converge.released");
        return "more";
      case "awaitRestart":
        await this.#settle(container, seen);
        return { lookInMs: step.inMs };
      case "cancelRestart":
        await this.#records.seen(container, { status: "exited", restartInMs: null }, "container.exited");
        return "more";
      case "erase":
        await this.#erase(container);
        return "done";
    }
  }

  /** Has the container's health checked for as long as this run goes on. */
  #watch(container: InboxContainer): void {
    const { id, run, slot, ranMs } = container;
    const spec = healthSpec(container.spec.healthcheck, container.image?.config.config?.Healthcheck);
    if (spec === null || slot === null) return;
    const address = this.#services.sandboxes.addressOf(slot);
    this.#health.watch({ id, run, address, spec, ranMs, health: container.health ?? "starting" });
  }

  #stopProgress(id: string): StopProgress {
    const stop = this.#stops.get(id);
    return stop === undefined ? null : { expired: performance.now() >= stop.deadline };
  }

  /** The row first: what the host knows of the end is gone with the release, which is the next step. */
  async #recordEnd(container: InboxContainer, step: Extract<Step, { step: "recordEnd" }>, seen: Seen): Promise<void> {
    const { id } = container;
    const { exitCode, oomKilled } = step.end;
    const reason = endReason(container.status, seen, step.end, this.#rebooted);
    this.#stops.delete(id);
    this.#published.delete(id);
    const again = step.restartInMs !== null;
    await this.#records.seen(
      container,
      {
        status: again ? "restarting" : "exited",
        restartInMs: step.restartInMs,
        pid: null,
        health: null,
        exitCode,
        oomKilled,
        reason,
        finished: true,
        ...(container.spec.autoRemove && !again ? { remove: true } : {}),
      },
      again ? "container.restarting" : "container.exited",
      { exitCode, oomKilled, ...(reason === null ? {} : { reason }) },
    );
    this.#reach("converge.ended");
  }

  async #erase(container: InboxContainer): Promise<void> {
    const { sandboxes, config } = this.#services;
    const { id } = container;
    const slot = this.#begin.slotOf(container);
    await sandboxes.remove(id, slot);
    this.#reach("converge.removed");
    const log = logPath(config.dataDir, id);
    await rm(log.slice(0, log.lastIndexOf("/")), { recursive: true, force: true });
    this.#reach("converge.forgotten");
    this.#stops.delete(id);
    this.#published.delete(id);
    this.#begin.forget(id);
    await this.#records.erase(container);
    this.#reach("converge.erased");
    // Only now may another container get the slot: its row is gone.
    if (slot !== null) sandboxes.freeSlot(slot);
  }

  /** Ports and signals that wait, then the note that this wish is done. */
  async #settle(container: InboxContainer, seen: Seen): Promise<void> {
    const { sandboxes } = this.#services;
    const { id, ports } = container;
    const removing = ports.filter((port) => port.status === "removing");
    if (seen.state === "running") {
      const first = !this.#published.has(id);
      this.#published.add(id);
      const active: string[] = [];
      const refused: { id: string; reason: string; detail: string }[] = [];
      for (const port of ports.filter((p) => p.status === "pending" || (first && p.status === "active"))) {
        try {
          await sandboxes.publish(id, [port]);
          active.push(port.id);
        } catch (thrown) {
          const error = toBerthError(thrown);
          refused.push({ id: port.id, reason: error.code, detail: error.message });
        }
      }
      if (container.seenRev !== container.wantedRev) await this.#limit(container);
      await sandboxes.unpublish(id, removing);
      await this.#records.ports(container, { active, gone: removing.map((port) => port.id), refused });
    } else {
      const idle = ports.filter((port) => port.status === "active");
      await this.#records.ports(container, { idle: idle.map((p) => p.id), gone: removing.map((p) => p.id) });
    }
    const signals = seen.state === "running" ? 0 : container.signals.length;
    if (container.seenRev !== container.wantedRev || signals > 0) {
      await this.#records.seen(container, {
        seenRev: container.wantedRev,
        ...(signals > 0 ? { signalsDelivered: signals } : {}),
      });
    }
  }

  /** Gives a running container the limits of its row; when its memory can't be taken away, the row gets it back. */
  async #limit(container: InboxContainer): Promise<void> {
    const { sandboxes } = this.#services;
    const { id } = container;
    try {
      sandboxes.setLimits(id, container);
    } catch (thrown) {
      const { code, message } = toBerthError(thrown);
      // It has ended, of which its exit tells.
      if (code === "invalid_state") return;
      if (code !== "memory_in_use") throw thrown;
      const refused = { reason: code, detail: message };
      await this.#records.seen(
        container,
        { memory: sandboxes.memoryLimit(id) },
        "container.resources_refused",
        refused,
      );
    }
  }
}

/** The signal that asks the container to end: its own, else the image's, else SIGTERM. */
function stopSignal(container: InboxContainer): number {
  const name = container.spec.stopSignal ?? container.image?.config.config?.StopSignal ?? "SIGTERM";
  return signalNumber(name) ?? constants.signals.SIGTERM;
}
