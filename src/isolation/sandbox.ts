import { closeSync } from "node:fs";
import type { Resources } from "../core/container.ts";
import { BerthError } from "../core/errors.ts";
import type { PortMapping } from "../core/port.ts";
import type { Log } from "../log.ts";
import { favorDynamicCgroups, prepareHost } from "./apply/host.ts";
import { lockDataDir } from "./apply/lock.ts";
import { signalProcess } from "./apply/process.ts";
import { mountReadOnly } from "./apply/runtime.ts";
import { Caches } from "./caches.ts";
import { takeDown } from "./down.ts";
import { type ExecRequest, type ExecResult, execIn } from "./exec.ts";
import { Exits } from "./exits.ts";
import { setLimits } from "./limits.ts";
import { type OwnerNote, readOwner, readRun } from "./notes.ts";
import { closeParts, openParts, type Parts, type SandboxConfig } from "./parts.ts";
import { cgroupPath, layout } from "./plan/layout.ts";
import type { Protection } from "./plan/protection.ts";
import type { Usage } from "./plan/usage.ts";
import { probeSlot, type SandboxState } from "./probe.ts";
import { type ProcessView, viewProcesses } from "./processes.ts";
import { releaseSlot, removeDisk } from "./release.ts";
import { type OpenRoot, Roots } from "./roots.ts";
import type { SandboxSpec, SandboxTemplate } from "./sandbox-spec.ts";
import { Slots } from "./slots.ts";
import { startSandbox } from "./start.ts";
import { linkedSlots, sweep } from "./sweep.ts";
import { usageOf } from "./usage.ts";
import { Views } from "./views.ts";

/** The disk that prepared slots have: what containers get when nothing else is asked for. */
const usualDisk = 2 ** 30;
const everyMs = { firewall: 1000, cgroups: 60_000 };

/**
 * The sandboxes of a worker: a process in all its namespaces, behind one door. Everything is acquired in order and
 * released in reverse; every kernel object is named after the instance and the slot, so that a worker that was killed
 * anywhere is succeeded by one that finds all of it. Containers outlive the worker. Calls for one id must not overlap.
 */
export class Sandboxes {
  readonly #parts: Parts;
  readonly #log: Log;
  readonly #lock: number;
  readonly #linked: Map<string, number>;
  readonly #slots: Slots;
  readonly #exits: Exits;
  readonly #views: Views;
  readonly #roots = new Roots();
  /** Those whose run is being taken away. */
  readonly #leaving = new Set<string>();
  /** What builds keep from one to the next. */
  readonly caches: Caches;
  readonly #timers: NodeJS.Timeout[];
  #swept = false;

  private constructor(parts: Parts, views: Views, log: Log, lock: number) {
    this.#parts = parts;
    this.#views = views;
    this.#log = log;
    this.#lock = lock;
    this.#linked = linkedSlots(parts.layout);
    this.#slots = new Slots(parts, log, usualDisk);
    this.#exits = new Exits(parts, this.#linked);
    this.caches = new Caches(parts.disks, parts.layout);
    this.#timers = [
      setInterval(() => {
        if (parts.firewall.reconcile()) log.warn("the firewall table was damaged, and has been made again");
      }, everyMs.firewall),
      setInterval(() => void favorDynamicCgroups(parts.layout), everyMs.cgroups),
    ];
    for (const timer of this.#timers) timer.unref();
  }

  /**
   * Takes this host over: one process at a time, in the mount namespace of ensureMountNamespace.
   * Containers that run are adopted. `sweep` must follow before slots are given out.
   * @throws BerthError `unavailable` when another worker holds the data directory, or a program is missing.
   */
  static async open(config: SandboxConfig, log: Log): Promise<Sandboxes> {
    const lock = lockDataDir(config.dataDir);
    try {
      await prepareHost(layout(config));
      const opened = await openParts(config);
      const parts = { ...opened, runtime: mountReadOnly(opened.runtime, opened.layout.programs) };
      if (parts.runtime.warning !== null) log.warn(parts.runtime.warning);
      const views = new Views(parts.mounts, parts.layout.views);
      await views.clear();
      return new Sandboxes(parts, views, log, lock);
    } catch (error) {
      closeSync(lock);
      throw error;
    }
  }

  /** Ends everything of an instance that no worker drives; see down.ts. */
  static down(config: SandboxConfig, graceMs?: number): Promise<void> {
    return takeDown(config, graceMs);
  }

  /** Stops watching, and gives up what was only prepared. Containers keep running. */
  async close(): Promise<void> {
    for (const timer of this.#timers) clearInterval(timer);
    this.#exits.close();
    await this.#slots.close();
    await closeParts(this.#parts);
    closeSync(this.#lock);
  }

  /**
   * Removes everything of this instance that none of `live` stands for; their runs, disks and logs stay. To be called
   * once, after `open`, with every container that has a row; slots are given out from then on.
   */
  async sweep(live: readonly { id: string; slot: number | null }[]): Promise<void> {
    if (this.#swept) throw new Error("the sweep comes once, before slots are given out");
    this.#swept = true;
    const slots = new Map(live.flatMap(({ id, slot }) => (slot === null ? [] : [[id, slot] as const])));
    await sweep(this.#parts, { live: slots, linked: this.#linked });
    for (const [id, slot] of [...this.#linked]) if (slots.get(id) !== slot) this.#forget(id);
    this.#slots.begin(slots.values());
  }

  /**
   * A slot that nobody has. It is the caller's until freeSlot.
   * @param template what is to be started on it: there may be a sandbox ready for it; null: nothing is
   */
  takeSlot(template: SandboxTemplate | null = null): number {
    return this.#slots.take(template);
  }

  /** Work that is short goes on here, and somebody waits for it: for a moment nothing is made ready, which takes longer. */
  holdOff(): void {
    this.#slots.holdOff();
  }

  /** Gives a slot back, once nothing of it is left (`remove`) and no row names it. */
  freeSlot(slot: number): void {
    this.#slots.free(slot).catch((error: unknown) => {
      // It stays taken; the sweep at the next start finds what is left of it.
      this.#log.error({ err: error, slot }, "a slot could not be given back");
    });
  }

  /** The container's IPv4 address. */
  addressOf(slot: number): string {
    return this.#parts.network.of(slot).ipv4;
  }

  /** First of the 65,536 host ids that are 0 to 65,535 in the slot's container. */
  idBaseOf(slot: number): number {
    return this.#parts.idBase(slot);
  }

  /**
   * Starts a process in a sandbox of its own; returns once it has been let go. On failure nothing is left but the disk
   * and log of the slot.
   * @param recorded awaited before the process is let go: the caller's record that it is about to run. When it
   * rejects, the start fails
   * @param without protections to leave out; for tests that show what each of them prevents
   * @throws BerthError `command_not_found`, `command_not_executable`, `invalid_user`, `disk_full`, `start_failed`
   */
  async start(
    spec: SandboxSpec,
    { recorded, without = new Set() }: { recorded?: Promise<unknown>; without?: ReadonlySet<Protection> } = {},
  ): Promise<{ pid: number; startedAt: Date }> {
    if (!/^[\w-]{1,80}$/.test(spec.id)) throw new RangeError("an id is made of letters, digits, `_` and `-`");
    if (this.#linked.has(spec.id)) throw new Error(`${spec.id} has a sandbox already: release it first`);
    this.#linked.set(spec.id, spec.slot);
    return this.#slots.before(async () => {
      try {
        const created = await this.#slots.create(spec.slot, spec, without);
        void created.ended.then(() => {
          this.#exits.lookAt(spec.id);
        });
        const started = await startSandbox(this.#parts, spec, created, recorded);
        if (without.size === 0) this.#slots.started(spec);
        return started;
      } catch (error) {
        // The first error is what counts; a second one, of the clean-up, leaves the link, and with it the way to retry.
        await this.release(spec.id).catch((cleanup: unknown) => {
          this.#log.error({ err: cleanup, sandbox: spec.id }, "a failed start could not be cleaned up");
        });
        if (error instanceof BerthError) throw error;
        throw new BerthError("start_failed", "The container could not be started.", { cause: error });
      }
    });
  }

  /** What the host has of a container, read from the kernel and the run files. */
  probe(id: string): SandboxState {
    const slot = this.#linked.get(id);
    return slot === undefined ? { state: "absent" } : probeSlot(this.#parts, slot);
  }

  /** Sends a signal to the container's first process; one that is gone needs none. */
  signal(id: string, signal: number): void {
    const run = this.#runOf(id);
    if (run !== null) signalProcess(run.process, signal);
  }

  /** Stops all processes of a container where they are. Idempotent; one that is gone needs nothing. */
  async pause(id: string): Promise<void> {
    await this.#freeze(id, true);
  }
  /** Lets them go on. */
  async resume(id: string): Promise<void> {
    await this.#freeze(id, false);
  }

  /** Runs a program inside a running container. @throws BerthError `invalid_state` when it does not run. */
  async exec(id: string, request: ExecRequest): Promise<ExecResult> {
    const slot = this.#linked.get(id);
    const runs = () => !this.#leaving.has(id) && this.probe(id).state === "running";
    if (slot === undefined || !runs()) throw new BerthError("invalid_state", "The container is not running.");
    try {
      return await execIn(this.#parts, slot, request);
    } catch (error) {
      // Whatever a command misses in a run that is being taken away, it is no fault of the command's.
      if (runs()) throw error;
      throw new BerthError("invalid_state", "The container has ended.", { cause: error });
    }
  }

  /**
   * The root filesystem of a running container, for reading and writing its files from outside.
   * @throws BerthError `invalid_state` when it does not run.
   */
  openRoot(id: string): OpenRoot {
    const slot = this.#linked.get(id);
    if (slot === undefined || this.probe(id).state !== "running") {
      throw new BerthError("invalid_state", "The container is not running.");
    }
    return this.#roots.open(id, this.#parts.slot(slot).rootfs, this.#parts.idBase(slot));
  }

  /** Calls back with the id of each container that has ended, until the returned function is called. */
  onExit(listener: (id: string) => void): () => void {
    return this.#exits.on(listener);
  }

  /** The writable layer of a container, between its start and its release; whiteouts as overlayfs has them. */
  upperOf(id: string): string {
    const slot = this.#linked.get(id);
    if (slot === undefined) throw new Error(`${id} has no sandbox`);
    return this.#parts.slot(slot).disk.upper;
  }

  /**
   * Runs `use` on the path of layers (EROFS files, lowest first) that are mounted read-only as one tree meanwhile, owners
   * as the image says.
   */
  withView<T>(layers: readonly string[], use: (path: string) => Promise<T>): Promise<T> {
    return this.#views.with(layers, use);
  }

  /** Takes away everything of a run but its disk and log. Idempotent, from any state. */
  async release(id: string): Promise<void> {
    const slot = this.#linked.get(id);
    if (slot === undefined) return;
    this.#leaving.add(id);
    try {
      await this.#roots.end(id);
      await this.#slots.before(() => releaseSlot(this.#parts, slot, id));
      this.#forget(id);
    } finally {
      this.#leaving.delete(id);
    }
  }

  /** Takes away the disk and the log too. Idempotent. @param slot the container's, null: it never had one */
  async remove(id: string, slot: number | null): Promise<void> {
    const known = this.#linked.get(id) ?? slot;
    await this.release(id);
    if (known === null) return;
    await this.#slots.giveUp(known);
    await removeDisk(this.#parts, known);
  }

  /** Publishes ports of a running container. Idempotent. @throws BerthError `host_port_in_use` */
  async publish(id: string, ports: readonly PortMapping[]): Promise<void> {
    const slot = this.#linked.get(id);
    if (slot === undefined) throw new BerthError("invalid_state", "The container is not running.");
    for (const port of ports) await this.#parts.ports.publish(port, slot);
  }

  /** Takes ports away and cuts their connections. Idempotent. */
  async unpublish(_id: string, ports: readonly PortMapping[]): Promise<void> {
    for (const port of ports) await this.#parts.ports.unpublish(port);
  }

  /** What a running container uses. @throws BerthError `invalid_state` when it does not run */
  async usage(id: string, limits: Resources): Promise<Usage> {
    const { slot, owner, cgroup } = this.#running(id);
    try {
      return await usageOf(this.#parts, slot, cgroup, owner.network, limits);
    } catch (error) {
      this.#running(id);
      throw error;
    }
  }

  /** Gives a running container other limits. Idempotent. @throws BerthError `memory_in_use`, `invalid_state` */
  setLimits(id: string, limits: Pick<Resources, "cpus" | "memory" | "pids">): void {
    const { cgroup } = this.#running(id);
    setLimits(this.#parts, cgroup, limits);
  }

  /** The memory limit that a running container has, bytes. @throws BerthError `invalid_state` */
  memoryLimit(id: string): number {
    const { cgroup } = this.#running(id);
    const { cgroups } = this.#parts;
    return Number(cgroups.read(cgroup, "memory", cgroups.version === 2 ? "memory.max" : "memory.limit_in_bytes"));
  }

  /** The writable layer of a running container, which changes. @throws BerthError `invalid_state` */
  runningUpper(id: string): string {
    return this.#parts.slot(this.#running(id).slot).disk.upper;
  }

  /** The processes of a running container. @throws BerthError `invalid_state` when it does not run */
  processes(id: string): ProcessView[] {
    const { slot, cgroup } = this.#running(id);
    return viewProcesses(this.#parts.cgroups.processes(cgroup), this.#parts.idBase(slot));
  }

  /** To be called before a layer's file is deleted; what runs on it goes on. Idempotent. */
  unmountLayer(layer: string): void {
    this.#parts.mounts.unmountLayer(layer);
  }

  #runOf(id: string) {
    const slot = this.#linked.get(id);
    return slot === undefined ? null : readRun(this.#parts.slot(slot).run);
  }

  /** Whose slot a running container is, and where its processes are. @throws BerthError `invalid_state` */
  #running(id: string): { slot: number; owner: OwnerNote; cgroup: string } {
    const slot = this.#linked.get(id);
    const owner = slot === undefined ? null : readOwner(this.#parts.slot(slot).owner);
    if (slot === undefined || owner === null || this.probe(id).state !== "running") {
      throw new BerthError("invalid_state", "The container is not running.");
    }
    return { slot, owner, cgroup: cgroupPath(this.#parts.layout, owner.projectId, slot) };
  }

  async #freeze(id: string, frozen: boolean): Promise<void> {
    const slot = this.#linked.get(id);
    const owner = slot === undefined ? null : readOwner(this.#parts.slot(slot).owner);
    if (slot === undefined || owner === null) throw new BerthError("invalid_state", "The container is not running.");
    await this.#parts.cgroups.freeze(cgroupPath(this.#parts.layout, owner.projectId, slot), frozen);
  }

  #forget(id: string): void {
    this.#linked.delete(id);
    this.#exits.forget(id);
  }
}
