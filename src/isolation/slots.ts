import { BerthError } from "../core/errors.ts";
import type { Log } from "../log.ts";
import { type Created, createSandbox, isWaiting } from "./create.ts";
import type { Parts } from "./parts.ts";
import { usableSlots } from "./plan/layout.ts";
import type { Protection } from "./plan/protection.ts";
import { isCreated, Pool, type Waiting } from "./pool.ts";
import { changeDisk, discardPrepared, type Prepared, prepareSlot } from "./prepare.ts";
import { releaseSlot, removeDisk } from "./release.ts";
import { type SandboxTemplate, templateKey } from "./sandbox-spec.ts";

/** Who has which slot: containers (their rows say so), the pool, or somebody who took one and has not started yet. */
export class Slots {
  readonly #parts: Parts;
  readonly #pool: Pool;
  /** null until `begin`: nobody knows yet. */
  #used: Set<number> | null = null;
  /** Ready ones that were taken. */
  readonly #taken = new Map<number, Waiting>();

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

  /** Makes no slot ready for a moment. */
  holdOff(): void {
    this.#pool.touch();
  }

  /** Does what somebody waits for, a start or a stop, before any slot is made ready. */
  before<T>(work: () => Promise<T>): Promise<T> {
    return this.#pool.before(work);
  }

  /**
   * A slot that is ready, for this template if possible; null: only its ids are of interest.
   * @throws BerthError `no_capacity` when every slot is used
   */
  take(template: SandboxTemplate | null): number {
    const ready = template === null ? null : this.#pool.take(template);
    const slot = ready === null ? this.#claim() : null;
    if (slot !== null) return slot;
    const waiting = ready ?? this.#pool.takeAny(template);
    if (waiting === null) throw new BerthError("no_capacity", "This host has no room for more containers.");
    this.#taken.set(waiting.slot, waiting);
    return waiting.slot;
  }

  /**
   * A sandbox of the template on the slot: what was taken, or made to fit now.
   * @param without protections to leave out
   */
  async create(slot: number, template: SandboxTemplate, without: ReadonlySet<Protection>): Promise<Created> {
    const taken = this.#taken.get(slot);
    if (taken !== undefined && isCreated(taken)) {
      if (taken.key === templateKey(template) && without.size === 0 && isWaiting(this.#parts, taken)) {
        this.#taken.delete(slot);
        return taken;
      }
      await this.giveUp(slot);
    }
    return createSandbox(this.#parts, template, await this.#prepare(slot, template), without);
  }

  /** What was started may well be started again. */
  started(template: SandboxTemplate): void {
    this.#pool.started(template);
  }

  async #prepare(slot: number, template: SandboxTemplate): Promise<Prepared> {
    const { tty, stdin } = template.process;
    const wanted = { network: template.network, disk: template.limits.disk, tty, stdin, keepDisk: true };
    const prepared = this.#taken.get(slot);
    if (prepared === undefined || isCreated(prepared)) return prepareSlot(this.#parts, slot, wanted);
    const { options } = prepared;
    if (options.network !== wanted.network || options.tty !== tty || options.stdin !== stdin) {
      await this.giveUp(slot);
      return prepareSlot(this.#parts, slot, wanted);
    }
    if (options.disk !== wanted.disk) await changeDisk(this.#parts, prepared, wanted.disk);
    this.#taken.delete(slot);
    return prepared;
  }

  /** Removes what a slot that was taken, and never started, has. Idempotent. */
  async giveUp(slot: number): Promise<void> {
    const waiting = this.#taken.get(slot);
    if (waiting === undefined) return;
    this.#taken.delete(slot);
    if (!isCreated(waiting)) discardPrepared(waiting);
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
