import { mkdir, rm } from "node:fs/promises";
import { constants } from "node:os";
import { endReason, nextStep, type Seen, type Step, type StopProgress } from "../core/converge.ts";
import { BerthError, toBerthError } from "../core/errors.ts";
import { healthSpec } from "../core/health.ts";
import type { Image } from "../core/image.ts";
import { signalNumber } from "../core/signals.ts";
import { holdsHost } from "../db/hosts-worker.ts";
import {
  eraseContainer,
  type InboxContainer,
  readContainer,
  readInbox,
  type SeenPatch,
  writeHealth,
  writePorts,
  writeSeen,
} from "../db/inbox.ts";
import { isDatabaseAway } from "../db/scope.ts";
import { nothingMoved } from "../image/transfer.ts";
import { armFailpoint, type ReachFailpoint } from "../isolation/failpoint.ts";
import { HealthChecks } from "./health.ts";
import { ensureImage, ensureLayers, type HeldImage } from "./images.ts";
import { Inbox } from "./inbox.ts";
import { containerTemplate } from "./sandbox-spec.ts";
import type { Services } from "./services.ts";

/** Where a container's log is kept on its host; it lives as long as the container. */
export function logPath(dataDir: string, id: string): string {
  return `${dataDir}/worker/logs/${id}/log`;
}

interface Drive {
  /** Aborts a pull that the wish no longer needs. */
  abort: AbortController;
}

/**
 * Drives each container of this host to what is wanted. `wake(id)` is the only way in: from the inbox, from exits, from
 * timers and from adoption at start. One drive per container at a time; a wake during a drive makes it look once more.
 */
export class Converger {
  readonly #services: Services;
  readonly #rebooted: boolean;
  readonly #reach: ReachFailpoint;
  readonly #drives = new Map<string, Drive>();
  /** Containers that were woken during their drive. */
  readonly #again = new Set<string>();
  readonly #stops = new Map<string, { deadline: number }>();
  readonly #timers = new Map<string, NodeJS.Timeout>();
  /** Containers whose ports this process holds. */
  readonly #published = new Set<string>();
  /** Slots taken for containers whose rows may not name them: the write was not answered. The next start takes it up. */
  readonly #unrecorded = new Map<string, number>();
  readonly #inbox: Inbox<InboxContainer>;
  readonly #health: HealthChecks;
  #closed = false;

  constructor(services: Services, more: { rebooted: boolean }) {
    this.#services = services;
    this.#rebooted = more.rebooted;
    this.#reach = armFailpoint(services.config.failpoint);
    const { connection, host, sandboxes, log } = services;
    this.#health = new HealthChecks({
      exec: (id, request) => sandboxes.exec(id, request),
      record: (container, health, why) =>
        writeHealth(connection.sql, { hostId: host.id, session: host.session }, container, health, why),
      failed: (error, id) => {
        log.warn({ err: error, container: id }, "a container's health was not recorded");
        this.#wakeIn(id, 1000);
      },
    });
    this.#inbox = new Inbox(
      () => readInbox(connection.sql, host.id),
      (id, fresh) => this.wake(id, fresh),
    );
  }

  /** Wakes every container of which something new is wanted. */
  readInbox(): Promise<void> {
    return this.#inbox.read();
  }

  /** Looks at a container soon. `fresh`: its row, when the caller has just read it. */
  wake(id: string, fresh: InboxContainer | null = null): void {
    if (this.#closed) return;
    const drive = this.#drives.get(id);
    if (drive === undefined) {
      this.#drives.set(id, { abort: new AbortController() });
      void this.#drive(id, fresh);
    } else {
      this.#again.add(id);
      if (fresh !== null && fresh.wanted !== "running") drive.abort.abort();
    }
  }

  /** Takes no further steps; containers stay as they are. */
  close(): void {
    this.#closed = true;
    this.#health.close();
    for (const timer of this.#timers.values()) clearTimeout(timer);
    for (const drive of this.#drives.values()) drive.abort.abort();
  }

  #wakeIn(id: string, milliseconds: number): void {
    clearTimeout(this.#timers.get(id));
    this.#timers.set(
      id,
      setTimeout(() => {
        this.#timers.delete(id);
        this.wake(id);
      }, milliseconds),
    );
  }

  async #drive(id: string, fresh: InboxContainer | null): Promise<void> {
    const { log, connection, host } = this.#services;
    const drive = this.#drives.get(id);
    if (drive === undefined) return;
    try {
      for (let row = fresh; !this.#closed; row = null) {
        this.#again.delete(id);
        const container = row ?? (await readContainer(connection.sql, host.id, id));
        if (container === null || (await this.#step(container, drive)) === "done") {
          if (!this.#again.has(id)) break;
        }
      }
    } catch (error) {
      log.error({ err: error, container: id }, "converging failed; trying again");
      this.#wakeIn(id, 1000);
    } finally {
      this.#drives.delete(id);
      this.#inbox.written(id);
      if (this.#again.delete(id)) this.wake(id);
    }
  }

  /** Takes one step. `done`: nothing more to do until the next wake. */
  async #step(container: InboxContainer, drive: Drive): Promise<"done" | "more"> {
    const { sandboxes } = this.#services;
    const { id } = container;
    const seen = sandboxes.probe(id);
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
        await this.#start(container, step, seen, drive);
        return "more";
      case "adopt":
        await this.#write(
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
        await this.#write(container, { signalsDelivered: container.signals.length });
        return "more";
      case "pause":
        await sandboxes.pause(id);
        await this.#write(container, { status: "paused" }, "container.paused");
        return "more";
      case "resume":
        await sandboxes.resume(id);
        await this.#write(container, { status: "running" }, "container.unpaused");
        return "more";
      case "beginStop": {
        const seconds = container.spec.stopTimeoutSeconds;
        this.#stops.set(id, { deadline: performance.now() + seconds * 1000 });
        await this.#write(container, { status: "stopping" });
        this.#reach("converge.stopping");
        sandboxes.signal(id, stopSignal(container));
        await sandboxes.resume(id);
        this.#reach("converge.asked");
        return "more";
      }
      case "awaitStop":
        this.#wakeIn(id, Math.max((this.#stops.get(id)?.deadline ?? 0) - performance.now(), 0));
        return "done";
      case "kill":
        sandboxes.signal(id, constants.signals.SIGKILL);
        await sandboxes.resume(id);
        // Woken by the exit; looked at again in case its notice is lost.
        this.#wakeIn(id, 1000);
        return "done";
      case "recordEnd":
        await this.#recordEnd(container, step, seen);
        return "more";
      case "release":
        await sandboxes.release(id);
        this.#reach("converge.released");
        return "more";
      case "awaitRestart":
        this.#wakeIn(id, step.inMs);
        await this.#settle(container, seen);
        return "done";
      case "cancelRestart":
        await this.#write(container, { status: "exited", restartInMs: null }, "container.exited");
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

  /** @throws BerthError `unavailable` when the row is no longer this session's: no step may follow on it. */
  async #write(
    container: InboxContainer,
    patch: SeenPatch,
    event?: string,
    data: Record<string, unknown> = {},
  ): Promise<void> {
    const { connection, host } = this.#services;
    const fence = { hostId: host.id, session: host.session };
    const told = event === undefined ? undefined : { type: event, data };
    if (!(await writeSeen(connection.sql, fence, container, patch, told))) {
      throw new BerthError("unavailable", "A newer session of this host has taken over.");
    }
  }

  async #start(
    container: InboxContainer,
    step: Extract<Step, { step: "start" }>,
    seen: Seen,
    drive: Drive,
  ): Promise<void> {
    const { sandboxes, config } = this.#services;
    const { id } = container;
    const begun: SeenPatch = {
      run: step.run,
      status: "starting",
      restartCount: step.restart ? container.restartCount + 1 : 0,
      restartInMs: null,
      exitCode: null,
      reason: null,
      detail: null,
      oomKilled: false,
    };
    let recorded = Promise.resolve();
    try {
      if (seen.state !== "absent") await sandboxes.release(id);
      this.#stops.delete(id);
      const { image, moved } = await this.#image(container, drive, begun);
      const template = containerTemplate(container, image, await this.#services.layers.lowers(image.layers));
      const slot = container.slot ?? this.#unrecorded.get(id) ?? sandboxes.takeSlot(template);
      this.#unrecorded.set(id, slot);
      const ipAddress = sandboxes.addressOf(slot);
      // Beside the effects, but before the process is let go. Effects of a start that was never recorded are found by
      // the next worker: its sweep removes what no row's slot stands for.
      recorded = this.#write(container, { ...begun, slot, ipAddress, imageDigest: image.digest }).then(() => {
        this.#unrecorded.delete(id);
        this.#reach("converge.begun");
      });
      recorded.catch(() => undefined);
      const log = logPath(config.dataDir, id);
      await mkdir(log.slice(0, log.lastIndexOf("/")), { recursive: true, mode: 0o711 });
      const { pid } = await sandboxes.start({ ...template, id, slot, log }, { recorded });
      this.#reach("converge.started");
      const wanted = container.ports.filter((port) => port.status !== "removing");
      await sandboxes.publish(id, wanted);
      this.#reach("converge.published");
      this.#published.add(id);
      await this.#write(
        container,
        {
          status: "running",
          pid,
          started: true,
          health: firstHealth(container, image),
          ...(container.signals.length > 0 ? {} : { seenRev: container.wantedRev }),
        },
        "container.started",
        { ...moved },
      );
      this.#reach("converge.running");
      await this.#writePorts(container, { active: wanted.map((port) => port.id) });
    } catch (thrown) {
      // The record of the beginning must not come after that of the failure.
      const [record] = await Promise.allSettled([recorded]);
      // Without the database nothing has run, and nothing is the container's fault: the drive begins again.
      for (const cause of [record.status === "rejected" ? record.reason : null, thrown]) {
        if (isDatabaseAway(cause)) throw cause;
      }
      if (drive.abort.signal.aborted) {
        drive.abort = new AbortController();
        return;
      }
      const error = toBerthError(thrown);
      if (error.code === "internal") this.#services.log.error({ err: error, container: id }, "a start failed");
      await sandboxes.release(id);
      await this.#write(
        container,
        { ...begun, status: "failed", reason: error.code, detail: error.message, finished: true },
        "container.failed",
        { reason: error.code, detail: error.message },
      );
    }
  }

  /**
   * The container's image with all layers on this host, and what was moved to get there; shows `starting` first when that
   * may take a while.
   */
  async #image(container: InboxContainer, drive: Drive, begun: SeenPatch): Promise<HeldImage> {
    const { layers } = this.#services;
    const { image, spec, run } = container;
    const again = spec.pull === "always" && run === 0;
    if (image !== null && !again) {
      const here = await Promise.all(image.layers.map((layer) => layers.has(layer.diffId)));
      if (!here.includes(false)) return { image, moved: nothingMoved(here.length) };
    }
    await this.#write(container, { status: "starting", ...(begun.run === undefined ? {} : { run: begun.run }) });
    if (image !== null && !again) {
      return { image, moved: await ensureLayers(this.#services, image) };
    }
    return ensureImage(this.#services, container.projectId, container.imageReference, {
      pull: spec.pull,
      signal: drive.abort.signal,
      held: (tx) => holdsHost(tx, this.#services.host),
    });
  }

  /** The row first: what the host knows of the end is gone with the release, which is the next step. */
  async #recordEnd(container: InboxContainer, step: Extract<Step, { step: "recordEnd" }>, seen: Seen): Promise<void> {
    const { id } = container;
    const { exitCode, oomKilled } = step.end;
    const reason = endReason(container.status, seen, step.end, this.#rebooted);
    this.#stops.delete(id);
    this.#published.delete(id);
    const again = step.restartInMs !== null;
    await this.#write(
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
    const { sandboxes, config, connection, host } = this.#services;
    const { id } = container;
    const slot = container.slot ?? this.#unrecorded.get(id) ?? null;
    await sandboxes.remove(id, slot);
    this.#reach("converge.removed");
    const log = logPath(config.dataDir, id);
    await rm(log.slice(0, log.lastIndexOf("/")), { recursive: true, force: true });
    this.#reach("converge.forgotten");
    this.#stops.delete(id);
    this.#published.delete(id);
    this.#unrecorded.delete(id);
    clearTimeout(this.#timers.get(id));
    this.#timers.delete(id);
    await eraseContainer(connection.sql, { hostId: host.id, session: host.session }, container);
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
      this.#published.add(id);
      if (container.seenRev !== container.wantedRev) await this.#limit(container);
      await sandboxes.unpublish(id, removing);
      await this.#writePorts(container, { active, gone: removing.map((port) => port.id), refused });
    } else {
      const idle = ports.filter((port) => port.status === "active");
      await this.#writePorts(container, { idle: idle.map((p) => p.id), gone: removing.map((p) => p.id) });
    }
    const signals = seen.state === "running" ? 0 : container.signals.length;
    if (container.seenRev !== container.wantedRev || signals > 0) {
      await this.#write(container, {
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
      await this.#write(container, { memory: sandboxes.memoryLimit(id) }, "container.resources_refused", refused);
    }
  }

  async #writePorts(container: InboxContainer, change: Parameters<typeof writePorts>[3]): Promise<void> {
    const { connection, host } = this.#services;
    if (Object.values(change).every((list) => list.length === 0)) return;
    await writePorts(connection.sql, { hostId: host.id, session: host.session }, container, change);
  }
}

/** The health of a run that begins; null: nothing checks it. */
function firstHealth(container: InboxContainer, image: Image | null): "starting" | null {
  return healthSpec(container.spec.healthcheck, image?.config.config?.Healthcheck) === null ? null : "starting";
}

/** The signal that asks the container to end: its own, else the image's, else SIGTERM. */
function stopSignal(container: InboxContainer): number {
  const name = container.spec.stopSignal ?? container.image?.config.config?.StopSignal ?? "SIGTERM";
  return signalNumber(name) ?? constants.signals.SIGTERM;
}
