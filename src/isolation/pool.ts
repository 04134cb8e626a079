import type { Log } from "../log.ts";
import { type Created, createSandbox } from "./create.ts";
import type { Parts } from "./parts.ts";
import { discardPrepared, type Prepared, prepareSlot } from "./prepare.ts";
import { Recent } from "./recent.ts";
import { releaseSlot, removeDisk } from "./release.ts";
import { type SandboxTemplate, templateKey } from "./sandbox-spec.ts";

/** Slots kept ready. Each costs a parked monitor (0.7 MB), a link and a sparse file. */
const readySlots = 8;
/** So many more are kept with a disk of another size, for so long after one was started with it: what builds use. */
const otherDisks = { ready: 2, forMs: 600_000 };
/** The pool is filled only when nothing was started or stopped for this long, one slot at a time. */
const idleMs = 15;
const retryMs = 5000;

/** What most containers are: no terminal, a network, the usual disk. */
const usual = { network: "project", tty: false, stdin: false, keepDisk: false } as const;

/** What waits on a slot for its container: a sandbox, or a slot that needs one yet. */
export type Waiting = Created | Prepared;

export const isCreated = (waiting: Waiting): waiting is Created => "key" in waiting;

/**
 * What was made ready ahead of need. A start that finds a ready slot saves 6 ms. One that finds a sandbox of its own
 * template, all of it made but its process let go, needs no runtime at all: what was started lately is kept ready once
 * more (recent.ts), since the same thing is often started again, as the next of several, or after a change of plans.
 */
export class Pool {
  readonly #parts: Parts;
  readonly #log: Log;
  readonly #disk: number;
  readonly #claim: () => number | null;
  readonly #free: (slot: number) => void;
  readonly #recent = new Recent();
  readonly #ready: Prepared[] = [];
  /** The last unusual size of a disk. */
  #other: { disk: number; until: number } | null = null;
  readonly #created: Created[] = [];
  #timer: NodeJS.Timeout | undefined;
  #work: Promise<void> = Promise.resolve();
  #busy = 0;
  #closed = false;

  /**
   * @param disk bytes of the usual disk
   * @param claim takes a slot that nobody has; null: there is none
   * @param free gives it back
   */
  constructor(parts: Parts, log: Log, disk: number, claim: () => number | null, free: (slot: number) => void) {
    this.#parts = parts;
    this.#log = log;
    this.#disk = disk;
    this.#claim = claim;
    this.#free = free;
  }

  /** What is ready for a container of this template, or for any; now the caller's. null: nothing is. */
  take(template: SandboxTemplate): Waiting | null {
    this.touch();
    const key = templateKey(template);
    const { disk } = template.limits;
    return (
      takeOut(this.#created, (created) => created.key === key) ??
      takeOut(this.#ready, ({ options }) => options.disk === disk) ??
      takeOut(this.#ready, ({ options }) => options.disk === this.#disk)
    );
  }

  /** What is ready for others, where there is no slot but those; now the caller's. null: nothing is. */
  takeAny(template: SandboxTemplate | null): Waiting | null {
    const any = () => true;
    // One whose ids alone are of interest has no process with them.
    return takeOut<Waiting>(this.#ready, any) ?? (template === null ? null : takeOut<Waiting>(this.#created, any));
  }

  /** Something was started, which makes it likely to be started again. */
  started(template: SandboxTemplate): void {
    const { profile, network, process, limits } = template;
    if (limits.disk !== this.#disk) this.#other = { disk: limits.disk, until: performance.now() + otherDisks.forMs };
    const isUsual = profile === "container" && network === usual.network && !process.tty && !process.stdin;
    if (isUsual && limits.disk === this.#disk) this.#recent.add(template);
  }

  /** Fills again, once it is quiet. */
  touch(): void {
    this.#wait(idleMs);
  }

  /** Does what somebody waits for, a start or a stop; filling comes after it. */
  async before<T>(work: () => Promise<T>): Promise<T> {
    this.#busy++;
    try {
      return await work();
    } finally {
      this.#busy--;
      this.#wait(idleMs);
    }
  }

  /** Gives up all that is ready. */
  async close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#timer);
    await this.#work;
    await Promise.all([...this.#ready.splice(0), ...this.#created.splice(0)].map((waiting) => this.#giveUp(waiting)));
  }

  #wait(ms: number): void {
    if (this.#closed) return;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      this.#then(() => this.#fill());
    }, ms);
    this.#timer.unref();
  }

  /** One thing after the other. */
  #then(work: () => Promise<void>): void {
    this.#work = this.#work.then(work);
  }

  /** One step; the next comes when it has been quiet again. */
  async #fill(): Promise<void> {
    // Who is busy calls again when it is over.
    if (this.#closed || this.#busy > 0) return;
    const { missing, surplus, nextMs } = this.#recent.compare(this.#created);
    if (this.#other !== null && this.#other.until < performance.now()) this.#other = null;
    const sizes = [this.#disk, this.#other?.disk];
    const old =
      takeOut(this.#created, (created) => surplus.has(created)) ??
      takeOut(this.#ready, ({ options }) => !sizes.includes(options.disk));
    if (old !== null) {
      await this.#giveUp(old);
      this.#wait(idleMs);
      return;
    }
    const prepared = missing === null ? null : takeOut(this.#ready, ({ options }) => options.disk === this.#disk);
    const disk = this.#missingDisk();
    if (missing !== null && prepared !== null) {
      if (!(await this.#create(missing, prepared))) this.#recent.drop(missing);
      this.#wait(idleMs);
    } else if (disk !== null) {
      this.#wait((await this.#prepare(disk)) ? idleMs : retryMs);
    } else if (nextMs !== null) {
      this.#wait(nextMs);
    }
  }

  /** The size of the disk of which a ready slot is missing. */
  #missingDisk(): number | null {
    const ready = (disk: number) => this.#ready.filter(({ options }) => options.disk === disk).length;
    if (ready(this.#disk) < readySlots) return this.#disk;
    const other = this.#other?.disk ?? this.#disk;
    return other !== this.#disk && ready(other) < otherDisks.ready ? other : null;
  }

  async #prepare(disk: number): Promise<boolean> {
    const slot = this.#claim();
    if (slot === null) return false;
    try {
      const prepared = await prepareSlot(this.#parts, slot, { ...usual, disk });
      this.#ready.push(prepared);
      void prepared.monitor.ended.then(() => this.#dropped(this.#ready, prepared));
      return true;
    } catch (error) {
      this.#log.warn({ err: error, slot }, "a sandbox could not be prepared");
      await this.#clear(slot);
      return false;
    }
  }

  async #create(template: SandboxTemplate, prepared: Prepared): Promise<boolean> {
    const { slot } = prepared;
    try {
      const created = await createSandbox(this.#parts, template, prepared, new Set());
      this.#created.push(created);
      void created.ended.then(() => this.#dropped(this.#created, created));
      return true;
    } catch (error) {
      this.#log.warn({ err: error, slot }, "a sandbox could not be created ahead");
      await this.#clear(slot);
      return false;
    }
  }

  /** A monitor that ended while it was waiting makes its slot useless. */
  #dropped<W extends Waiting>(list: W[], waiting: W): void {
    const index = list.indexOf(waiting);
    if (index < 0) return;
    list.splice(index, 1);
    this.#then(() => this.#giveUp(waiting));
    this.#wait(idleMs);
  }

  async #giveUp(waiting: Waiting): Promise<void> {
    if (!isCreated(waiting)) discardPrepared(waiting);
    await this.#clear(waiting.slot);
  }

  async #clear(slot: number): Promise<void> {
    try {
      await releaseSlot(this.#parts, slot, null);
      await removeDisk(this.#parts, slot);
      this.#free(slot);
    } catch (error) {
      // The slot stays taken; the sweep at the next start finds what is left of it.
      this.#log.error({ err: error, slot }, "a prepared sandbox could not be removed");
    }
  }
}

/** Takes the first one that fits out of the list; null: none does. */
function takeOut<W>(list: W[], fits: (one: W) => boolean): W | null {
  const index = list.findIndex(fits);
  return list.splice(index, index < 0 ? 0 : 1)[0] ?? null;
}
