import { mkdirSync } from "node:fs";
import type { Seen, Step } from "../core/converge.ts";
import { toBerthError } from "../core/errors.ts";
import { healthSpec } from "../core/health.ts";
import type { Image } from "../core/image.ts";
import { holdsHost } from "../db/hosts-worker.ts";
import type { InboxContainer, SeenPatch } from "../db/inbox.ts";
import { isDatabaseAway } from "../db/scope.ts";
import { nothingMoved } from "../image/transfer.ts";
import type { ReachFailpoint } from "../isolation/failpoint.ts";
import type { ContainerRecords } from "./container-records.ts";
import { ensureImage, ensureLayers, type HeldImage } from "./images.ts";
import { containerTemplate } from "./sandbox-spec.ts";
import type { Services } from "./services.ts";

/** Where a container's log is kept on its host; it lives as long as the container. */
export function logPath(dataDir: string, id: string): string {
  return `${dataDir}/worker/logs/${id}/log`;
}

/** What one drive of a container may be told meanwhile. */
export interface Drive {
  /** Aborts a pull that the wish no longer needs. */
  abort: AbortController;
}

/** Begins runs: image, slot, sandbox, ports, and what is recorded of each. */
export class ContainerStart {
  readonly #services: Services;
  readonly #records: ContainerRecords;
  readonly #reach: ReachFailpoint;
  /**
   * Starts whose records the database may not have, or may lose again: the write was not answered, or is not yet on disk.
   */
  readonly #unsettled = new Map<string, SeenPatch & { slot: number }>();

  constructor(services: Services, records: ContainerRecords, reach: ReachFailpoint) {
    this.#services = services;
    this.#records = records;
    this.#reach = reach;
  }

  /** The container's slot, recorded or not; null: it never had one. */
  slotOf(container: InboxContainer): number | null {
    return container.slot ?? this.#unsettled.get(container.id)?.slot ?? null;
  }

  /** To be called when the container is gone. */
  forget(id: string): void {
    this.#unsettled.delete(id);
  }

  /** Records once more a start of which the database may know nothing, although something of it exists. False: none. */
  async recordAgain(container: InboxContainer): Promise<boolean> {
    const begun = this.#unsettled.get(container.id);
    if (begun === undefined) return false;
    await this.#records.seen(container, begun);
    this.#unsettled.delete(container.id);
    return true;
  }

  /** Starts the container's next run, its ports with it. False: it could not be, which is recorded, or was called off. */
  async start(
    container: InboxContainer,
    step: Extract<Step, { step: "start" }>,
    seen: Seen,
    drive: Drive,
  ): Promise<boolean> {
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
      const { image, moved } = await this.#image(container, drive, begun);
      const template = containerTemplate(container, image, await this.#services.layers.lowers(image.layers));
      const slot = this.slotOf(container) ?? sandboxes.takeSlot(template);
      const begin = { ...begun, slot, ipAddress: sandboxes.addressOf(slot), imageDigest: image.digest };
      this.#unsettled.set(id, begin);
      // Beside the effects, but before the process is let go. Effects of a start that was never recorded are found by
      // the next worker: its sweep removes what no row's slot stands for. The disk is waited for once, by the record of
      // the process; when the database crashes before that, this worker records again what it has begun (recordAgain).
      recorded = this.#records.seenSoon(container, begin).then(() => {
        this.#reach("converge.begun");
      });
      recorded.catch(() => undefined);
      const log = logPath(config.dataDir, id);
      mkdirSync(log.slice(0, log.lastIndexOf("/")), { recursive: true, mode: 0o711 });
      const { pid } = await sandboxes.start({ ...template, id, slot, log }, { recorded });
      this.#reach("converge.started");
      const wanted = container.ports.filter((port) => port.status !== "removing");
      await sandboxes.publish(id, wanted);
      this.#reach("converge.published");
      await this.#records.seen(
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
      this.#unsettled.delete(id);
      this.#reach("converge.running");
      await this.#records.ports(container, { active: wanted.map((port) => port.id) });
      return true;
    } catch (thrown) {
      // The record of the beginning must not come after that of the failure.
      const [record] = await Promise.allSettled([recorded]);
      // Without the database nothing has run, and nothing is the container's fault: the drive begins again.
      for (const cause of [record.status === "rejected" ? record.reason : null, thrown]) {
        if (isDatabaseAway(cause)) throw cause;
      }
      if (drive.abort.signal.aborted) {
        drive.abort = new AbortController();
        return false;
      }
      const error = toBerthError(thrown);
      if (error.code === "internal") this.#services.log.error({ err: error, container: id }, "a start failed");
      await sandboxes.release(id);
      await this.#records.ports(container, { idle: container.ports.map((port) => port.id) });
      await this.#records.seen(
        container,
        {
          ...this.#unsettled.get(id),
          ...begun,
          status: "failed",
          reason: error.code,
          detail: error.message,
          finished: true,
        },
        "container.failed",
        { ...error.facts, reason: error.code, detail: error.message },
      );
      this.#unsettled.delete(id);
      return false;
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
      const here = await Promise.all(image.layers.map((layer) => layers.has(layer)));
      if (!here.includes(false)) return { image, moved: nothingMoved(here.length) };
    }
    await this.#records.seen(container, { status: "starting", ...(begun.run === undefined ? {} : { run: begun.run }) });
    if (image !== null && !again) {
      return { image, moved: await ensureLayers(this.#services, image, drive.abort.signal) };
    }
    return ensureImage(this.#services, container.projectId, container.imageReference, {
      pull: spec.pull,
      signal: drive.abort.signal,
      held: (tx) => holdsHost(tx, this.#services.host),
    });
  }
}

/** The health of a run that begins; null: nothing checks it. */
export function firstHealth(container: InboxContainer, image: Image | null): "starting" | null {
  return healthSpec(container.spec.healthcheck, image?.config.config?.Healthcheck) === null ? null : "starting";
}
