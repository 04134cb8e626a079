import { closeSync, existsSync, mkdirSync, openSync, readdirSync, readlinkSync, watch } from "node:fs";
import { basename } from "node:path";
import type { Resources } from "../core/container.ts";
import { BerthError } from "../core/errors.ts";
import type { PortMapping } from "../core/port.ts";
import type { Log } from "../log.ts";
import { flock, hasCode, LOCK_EX, LOCK_NB } from "./apply/ffi.ts";
import { favorDynamicCgroups, prepareHost, removeMountNamespace } from "./apply/host.ts";
import { isAlive, signalProcess, waitGone } from "./apply/process.ts";
import { mountReadOnly } from "./apply/runtime.ts";
import { type ExecRequest, type ExecResult, execIn } from "./exec.ts";
import { readOwner, readRun } from "./notes.ts";
import { closeParts, openParts, type Parts, type SandboxConfig } from "./parts.ts";
import { cgroupPath, layout, usableSlots } from "./plan/layout.ts";
import type { Protection } from "./plan/spec.ts";
import { Pool } from "./pool.ts";
import { changeDisk, discardPrepared, type Prepared, type PrepareOptions, prepareSlot } from "./prepare.ts";
import { isMonitorLost, probeSlot, type SandboxState } from "./probe.ts";
import { releaseSlot, removeDisk } from "./release.ts";
import { startPrepared } from "./start.ts";
import { numbersIn, sweep } from "./sweep.ts";
import { Views } from "./views.ts";

/** Everything that one process in a sandbox is started with. */
export interface SandboxSpec {
  /** Of a container or build step; letters, digits, `_` and `-`. */
  id: string;
  /** From takeSlot, or the one that the container has had since its first start. */
  slot: number;
  projectId: string;
  /** EROFS files, lowest first. */
  layers: readonly string[];
  process: {
    args: string[];
    /** `NAME=value` */
    env: string[];
    cwd: string;
    /** "", `name`, `uid`, `name:group` or `uid:gid`, by the account files of the image. */
    user: string;
    tty: boolean;
    stdin: boolean;
  };
  hostname: string;
  limits: Resources;
  readOnlyRootfs: boolean;
  profile: "container" | "build";
  capabilities: { add: readonly string[]; drop: readonly string[] };
  /** `none`: only a loopback of its own. */
  network: "project" | "none";
  /** Where the log is to be found: becomes a link, in an existing directory. */
  log: string;
}

/** The disk that prepared slots have: what containers get when nothing else is asked for. */
const usualDisk = 2 ** 30;
const SIGTERM = 15;
const SIGKILL = 9;
const secondMs = 1000;
const minuteSeconds = 60;

/**
 * The sandboxes of a worker: a process in all its namespaces, behind one door. Everything is acquired in order and
 * released in reverse; every kernel object is named after the instance and the slot, so that a worker that was killed
 * anywhere is succeeded by one that finds all of it. Containers outlive the worker. Calls for one id must not overlap.
 */
export class Sandboxes {
  readonly #parts: Parts;
  readonly #log: Log;
  readonly #lock: number;
  readonly #linked = new Map<string, number>();
  readonly #taken = new Map<number, Prepared>();
  /** Slots that can't be given out. null before the first sweep: nobody knows yet. */
  #used: Set<number> | null = null;
  readonly #pool: Pool;
  readonly #views: Views;
  readonly #exitListeners = new Set<(id: string) => void>();
  readonly #stopWatching: () => void;

  private constructor(parts: Parts, views: Views, log: Log, lock: number) {
    this.#parts = parts;
    this.#views = views;
    this.#log = log;
    this.#lock = lock;
    for (const id of readdirSync(parts.layout.links)) this.#linked.set(id, linkedSlot(parts, id));
    this.#pool = new Pool(
      parts,
      log,
      usualDisk,
      () => this.#claimSlot(),
      (slot) => this.#used?.delete(slot),
    );
    this.#stopWatching = this.#watch();
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

  /**
   * Ends all containers and removes every kernel object of the instance; disks, logs and the claim on ids stay. For a
   * process in the host's own mount namespace, when no worker runs.
   * @param graceMs how long containers may take after SIGTERM
   */
  static async down(config: SandboxConfig, graceMs = 5000): Promise<void> {
    const all = layout(config);
    const lock = lockDataDir(config.dataDir);
    try {
      if (existsSync(all.slots)) {
        const parts = await openParts(config);
        const links = new Map(readdirSync(all.links).map((id) => [linkedSlot(parts, id), id] as const));
        const slots = numbersIn(all.slots);
        await Promise.all(slots.map((slot) => endPolitely(parts, slot, graceMs)));
        await Promise.all(slots.map((slot) => releaseSlot(parts, slot, links.get(slot) ?? null)));
        await sweep(parts, { live: liveDisks(parts), linked: new Map() });
        parts.firewall.drop();
        await parts.network.down();
        parts.cgroups.removeParent(all.cgroup);
        await closeParts(parts);
      }
      await removeMountNamespace(config);
    } finally {
      closeSync(lock);
    }
  }

  /** Stops watching, and gives up what was only prepared. Containers keep running. */
  async close(): Promise<void> {
    this.#stopWatching();
    await this.#pool.close();
    for (const slot of [...this.#taken.keys()]) await this.#giveUpTaken(slot);
    await closeParts(this.#parts);
    closeSync(this.#lock);
  }

  /**
   * Removes everything of this instance that none of `live` stands for; their runs, disks and logs stay. To be called
   * once, after `open`, with every container that has a row; slots are given out from then on.
   */
  async sweep(live: readonly { id: string; slot: number | null }[]): Promise<void> {
    if (this.#used !== null) throw new Error("the sweep comes once, before slots are given out");
    const slots = new Map(live.flatMap(({ id, slot }) => (slot === null ? [] : [[id, slot] as const])));
    await sweep(this.#parts, { live: slots, linked: this.#linked });
    for (const [id, slot] of [...this.#linked]) if (slots.get(id) !== slot) this.#linked.delete(id);
    this.#used = new Set(slots.values());
    this.#pool.touch();
  }

  /** A slot that nobody has, ready to start if possible. It is the caller's until freeSlot. */
  takeSlot(): number {
    const prepared = this.#pool.take();
    if (prepared !== null) {
      this.#taken.set(prepared.slot, prepared);
      return prepared.slot;
    }
    const slot = this.#claimSlot();
    if (slot === null) throw new BerthError("no_capacity", "This host has no room for more containers.");
    return slot;
  }

  /** Gives a slot back, once nothing of it is left (`remove`) and no row names it. */
  freeSlot(slot: number): void {
    if (this.#taken.has(slot)) void this.#giveUpTaken(slot);
    else this.#used?.delete(slot);
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
   * @param without protections to leave out; for tests that show what each of them prevents
   * @throws BerthError `command_not_found`, `command_not_executable`, `invalid_user`, `disk_full`, `start_failed`
   */
  async start(
    spec: SandboxSpec,
    without: ReadonlySet<Protection> = new Set(),
  ): Promise<{ pid: number; startedAt: Date }> {
    if (!/^[\w-]{1,80}$/.test(spec.id)) throw new RangeError("an id is made of letters, digits, `_` and `-`");
    if (this.#linked.has(spec.id)) throw new Error(`${spec.id} has a sandbox already: release it first`);
    this.#pool.touch();
    this.#linked.set(spec.id, spec.slot);
    try {
      const prepared = await this.#prepare(spec);
      void prepared.monitor.ended.then(() => this.#lookAt(spec.id));
      return await startPrepared(this.#parts, spec, prepared, without);
    } catch (error) {
      // The first error is what counts; a second one, of the clean-up, leaves the link, and with it the way to retry.
      await this.release(spec.id).catch((cleanup: unknown) => {
        this.#log.error({ err: cleanup, sandbox: spec.id }, "a failed start could not be cleaned up");
      });
      if (error instanceof BerthError) throw error;
      throw new BerthError("start_failed", "The container could not be started.", { cause: error });
    } finally {
      this.#pool.touch();
    }
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

  /** Stops all processes of a container where they are, and lets them go on. */
  async pause(id: string): Promise<void> {
    await this.#freeze(id, true);
  }
  async resume(id: string): Promise<void> {
    await this.#freeze(id, false);
  }

  /** Runs a program inside a running container. @throws BerthError `invalid_state` when it does not run. */
  async exec(id: string, request: ExecRequest): Promise<ExecResult> {
    const slot = this.#linked.get(id);
    if (slot === undefined || this.probe(id).state !== "running") {
      throw new BerthError("invalid_state", "The container is not running.");
    }
    return execIn(this.#parts, slot, request);
  }

  /** Calls back with the id of each container that has ended, until the returned function is called. */
  onExit(listener: (id: string) => void): () => void {
    this.#exitListeners.add(listener);
    return () => this.#exitListeners.delete(listener);
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
    this.#pool.touch();
    await releaseSlot(this.#parts, slot, id);
    this.#linked.delete(id);
    this.#pool.touch();
  }

  /** Takes away the disk and the log too. Idempotent. @param slot the container's, null: it never had one */
  async remove(id: string, slot: number | null): Promise<void> {
    const known = this.#linked.get(id) ?? slot;
    await this.release(id);
    if (known === null) return;
    if (this.#taken.has(known)) await this.#giveUpTaken(known);
    else removeDisk(this.#parts, known);
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

  /** To be called before a layer's file is deleted; what runs on it goes on. Idempotent. */
  unmountLayer(layer: string): void {
    this.#parts.mounts.unmountLayer(layer);
  }

  /** The prepared slot that `takeSlot` gave out, made to fit; or one that is made ready now. */
  async #prepare(spec: SandboxSpec): Promise<Prepared> {
    const { tty, stdin } = spec.process;
    const wanted: PrepareOptions = { network: spec.network, disk: spec.limits.disk, tty, stdin, keepDisk: true };
    const prepared = this.#taken.get(spec.slot);
    if (prepared === undefined) return prepareSlot(this.#parts, spec.slot, wanted);
    const { options } = prepared;
    if (options.network === wanted.network && options.tty === tty && options.stdin === stdin) {
      if (options.disk !== wanted.disk) await changeDisk(this.#parts, prepared, wanted.disk);
      this.#taken.delete(spec.slot);
      return prepared;
    }
    await this.#giveUpTaken(spec.slot, { keepSlot: true });
    return prepareSlot(this.#parts, spec.slot, wanted);
  }

  async #giveUpTaken(slot: number, { keepSlot = false } = {}): Promise<void> {
    const prepared = this.#taken.get(slot);
    this.#taken.delete(slot);
    if (prepared !== undefined) discardPrepared(prepared);
    await releaseSlot(this.#parts, slot, null);
    removeDisk(this.#parts, slot);
    if (!keepSlot) this.#used?.delete(slot);
  }

  #claimSlot(): number | null {
    const used = this.#used;
    if (used === null) throw new Error("the sweep must come before slots are given out");
    for (let slot = 0; slot < usableSlots; slot++) {
      if (used.has(slot)) continue;
      used.add(slot);
      return slot;
    }
    return null;
  }

  #runOf(id: string) {
    const slot = this.#linked.get(id);
    return slot === undefined ? null : readRun(this.#parts.slot(slot).run);
  }

  async #freeze(id: string, frozen: boolean): Promise<void> {
    const slot = this.#linked.get(id);
    const owner = slot === undefined ? null : readOwner(this.#parts.slot(slot).owner);
    if (owner === null) throw new BerthError("invalid_state", "The container is not running.");
    await this.#parts.cgroups.freeze(cgroupPath(this.#parts.layout, owner.projectId, owner.id), frozen);
  }

  /**
   * Ends are noticed by the exit files that monitors write (2 ms after the process's end). Once a second comes what no
   * file tells: monitors that were killed, and a firewall that another program has flushed.
   */
  #watch(): () => void {
    const { exits, instance } = this.#parts.layout;
    const watcher = watch(exits, { persistent: false }, (_event, name) => {
      if (name === null || !existsSync(`${exits}/${name}`)) return;
      for (const [id, slot] of this.#linked) if (name === `${instance}-${String(slot)}`) this.#ended(id);
    });
    let seconds = 0;
    const timer = setInterval(() => {
      if (this.#parts.firewall.reconcile()) this.#log.warn("the firewall table was damaged, and has been made again");
      for (const id of [...this.#linked.keys()]) this.#lookAt(id);
      if (++seconds % minuteSeconds === 0) void favorDynamicCgroups(this.#parts.layout);
    }, secondMs);
    timer.unref();
    return () => {
      watcher.close();
      clearInterval(timer);
    };
  }

  /**
   * A container without its monitor can neither print nor tell how it ended, so it is ended: once, as any other end is.
   * The one who is told probes, and finds `monitor_lost`.
   */
  #lookAt(id: string): void {
    const slot = this.#linked.get(id);
    if (slot === undefined || !isMonitorLost(this.#parts, slot)) return;
    const run = this.#runOf(id);
    if (run === null) return;
    signalProcess(run.process, SIGKILL);
    void waitGone(run.process, 10_000).then((gone) => {
      if (gone) this.#ended(id);
    });
  }

  #ended(id: string): void {
    for (const listener of this.#exitListeners) listener(id);
  }
}

/** One process drives a host: the lock lasts as long as its descriptor, which no child gets. */
function lockDataDir(dataDir: string): number {
  mkdirSync(`${dataDir}/worker`, { recursive: true, mode: 0o711 });
  const lock = openSync(`${dataDir}/worker/lock`, "w");
  try {
    flock(lock, LOCK_EX | LOCK_NB);
    return lock;
  } catch (error) {
    closeSync(lock);
    if (!hasCode(error, "EAGAIN")) throw error;
    throw new BerthError("unavailable", `Another worker uses the data directory ${dataDir}.`, { cause: error });
  }
}

function linkedSlot(parts: Parts, id: string): number {
  return Number(basename(readlinkSync(`${parts.layout.links}/${id}`)));
}

async function endPolitely(parts: Parts, slot: number, graceMs: number): Promise<void> {
  const run = readRun(parts.slot(slot).run);
  if (run === null || !isAlive(run.process)) return;
  signalProcess(run.process, SIGTERM);
  if (!(await waitGone(run.process, graceMs))) signalProcess(run.process, SIGKILL);
}

/** Disks that stay when the instance goes down: all that there are, for their rows are out of reach here. */
function liveDisks(parts: Parts): Map<string, number> {
  return new Map([...parts.disks.slots(), ...numbersIn(parts.layout.logs)].map((slot) => [String(slot), slot]));
}
