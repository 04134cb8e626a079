import { BerthError } from "../core/errors.ts";
import type { Log } from "../log.ts";
import type { Parts } from "./parts.ts";
import { usableSlots } from "./plan/layout.ts";
import { Pool } from "./pool.ts";
import { changeDisk, discardPrepared, type Prepared, type PrepareOptions, prepareSlot } from "./prepare.ts";
import { releaseSlot, removeDisk } from "./release.ts";

/** Who has which slot: containers (their rows say so), the pool, or somebody who took one and has not started yet. */
export class Slots {
  readonly #parts: Parts;
  readonly #pool: Pool;
  /** null until `begin`: nobody knows yet. */
  #used: Set<number> | null = null;
  /** Ready ones that were taken. */
  readonly #taken = new Map<number, Prepared>();

  /** @param disk bytes of the disk that slots are made ready with */
  constructor(parts: Parts, log: Log, disk: number) {
    this.#parts = parts;
    this.#pool = new Pool(
      parts,
      log,
      disk,
      () => this.#claim(),
      (slot) => this.#used?.delete(slot),
    );
  }

  /** From now on slots are given out, but for those that containers have. */
  begin(used: Iterable<number>): void {
    this.#used = new Set(used);
    this.#pool.touch();
  }

  /** Does what somebody waits for, a start or a stop, before any slot is made ready. */
  before<T>(work: () => Promise<T>): Promise<T> {
    return this.#pool.before(work);
  }

  /** A ready slot if there is one. @throws BerthError `no_capacity` when every slot is used */
  take(): number {
    const prepared = this.#pool.take();
    if (prepared !== null) {
      this.#taken.set(prepared.slot, prepared);
      return prepared.slot;
    }
    const slot = this.#claim();
    if (slot === null) throw new BerthError("no_capacity", "This host has no room for more containers.");
    return slot;
  }

  /** The ready slot that was taken, made to fit; or one that is made ready now. */
  async prepare(slot: number, wanted: PrepareOptions): Promise<Prepared> {
    const prepared = this.#taken.get(slot);
    if (prepared === undefined) return prepareSlot(this.#parts, slot, wanted);
    const { network, tty, stdin, disk } = prepared.options;
    if (network !== wanted.network || tty !== wanted.tty || stdin !== wanted.stdin) {
      await this.giveUp(slot);
      return prepareSlot(this.#parts, slot, wanted);
    }
    if (disk !== wanted.disk) await changeDisk(this.#parts, prepared, wanted.disk);
    this.#taken.delete(slot);
    return prepared;
  }

  /** Removes what a slot that was taken, and never started, has. Idempotent. */
  async giveUp(slot: number): Promise<void> {
    const prepared = this.#taken.get(slot);
    if (prepared === undefined) return;
    this.#taken.delete(slot);
    discardPrepared(prepared);
    await releaseSlot(this.#parts, slot, null);
    await removeDisk(this.#parts, slot);
  }

  /** Lets a slot be given out again. Nothing may be left of it but what `giveUp` removes. */
  async free(slot: number): Promise<void> {
    await this.giveUp(slot);
    this.#used?.delete(slot);
  }

  /** Removes all that is only ready. */
  async close(): Promise<void> {
    await this.#pool.close();
    for (const slot of [...this.#taken.keys()]) await this.giveUp(slot);
  }

  #claim(): number | null {
    const used = this.#used;
    if (used === null) throw new Error("the sweep must come before slots are given out");
    for (let slot = 0; slot < usableSlots; slot++) {
      if (used.has(slot)) continue;
      used.add(slot);
      return slot;
    }
    return null;
  }
}
