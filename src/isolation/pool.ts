import type { Log } from "../log.ts";
import type { Parts } from "./parts.ts";
import { discardPrepared, type Prepared, prepareSlot } from "./prepare.ts";
import { releaseSlot, removeDisk } from "./release.ts";

/** Slots kept ready. Each costs a parked monitor (0.7 MB), a link and a sparse file. */
const readySlots = 8;
/** The pool is filled only when nothing was started or stopped for this long, one slot at a time. */
const idleMs = 15;
const retryMs = 5000;

/** What most containers are: no terminal, a network, the usual disk. */
const usual = { network: "project", tty: false, stdin: false, keepDisk: false } as const;

/** Slots that were made ready ahead of need: a start that finds one saves 6 ms. */
export class Pool {
  readonly #parts: Parts;
  readonly #log: Log;
  readonly #disk: number;
  readonly #claim: () => number | null;
  readonly #free: (slot: number) => void;
  readonly #ready: Prepared[] = [];
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

  get slots(): number[] {
    return this.#ready.map((prepared) => prepared.slot);
  }

  /** A slot that is ready, now the caller's; null: none is. */
  take(): Prepared | null {
    this.touch();
    return this.#ready.shift() ?? null;
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
    await Promise.all(this.#ready.splice(0).map((prepared) => this.#giveUp(prepared)));
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

  async #fill(): Promise<void> {
    // Who is busy calls again when it is over.
    if (this.#closed || this.#busy > 0 || this.#ready.length >= readySlots) return;
    const slot = this.#claim();
    if (slot === null) return;
    try {
      const prepared = await prepareSlot(this.#parts, slot, { ...usual, disk: this.#disk });
      this.#ready.push(prepared);
      void prepared.monitor.ended.then(() => this.#dropped(prepared));
      this.#wait(idleMs);
    } catch (error) {
      this.#log.warn({ err: error, slot }, "a sandbox could not be prepared");
      await this.#clear(slot);
      this.#wait(retryMs);
    }
  }

  /** A monitor that ended while it was waiting makes its slot useless. */
  #dropped(prepared: Prepared): void {
    const index = this.#ready.indexOf(prepared);
    if (index < 0) return;
    this.#ready.splice(index, 1);
    this.#then(() => this.#giveUp(prepared));
    this.#wait(idleMs);
  }

  async #giveUp(prepared: Prepared): Promise<void> {
    discardPrepared(prepared);
    await this.#clear(prepared.slot);
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
