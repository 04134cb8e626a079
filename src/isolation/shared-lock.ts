/** A lock that many share or one has alone, first come, first served. */
export class SharedLock {
  /** How many share it; -1: one has it alone. */
  #held = 0;
  readonly #waiting: { alone: boolean; go: () => void }[] = [];

  /** Waits for its turn. The returned function gives the lock back; calling it again does nothing. @throws the signal's reason */
  async take(alone: boolean, signal: AbortSignal): Promise<() => void> {
    signal.throwIfAborted();
    if (this.#waiting.length > 0 || !this.#admits(alone)) await this.#wait(alone, signal);
    else this.#hold(alone);
    return this.#release();
  }

  /** The lock alone, now; null: somebody has it or waits for it. */
  takeNow(): (() => void) | null {
    if (this.#waiting.length > 0 || !this.#admits(true)) return null;
    this.#hold(true);
    return this.#release();
  }

  #wait(alone: boolean, signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const place = {
        alone,
        go: () => {
          signal.removeEventListener("abort", give);
          resolve();
        },
      };
      const give = (): void => {
        this.#waiting.splice(this.#waiting.indexOf(place), 1);
        reject(signal.reason as Error);
        this.#next();
      };
      signal.addEventListener("abort", give, { once: true });
      this.#waiting.push(place);
    });
  }

  #release(): () => void {
    let held = true;
    return () => {
      if (!held) return;
      held = false;
      this.#held = this.#held < 0 ? 0 : this.#held - 1;
      this.#next();
    };
  }

  #next(): void {
    for (let first = this.#waiting[0]; first !== undefined && this.#admits(first.alone); first = this.#waiting[0]) {
      this.#waiting.shift();
      this.#hold(first.alone);
      first.go();
    }
  }

  #admits(alone: boolean): boolean {
    return alone ? this.#held === 0 : this.#held >= 0;
  }

  #hold(alone: boolean): void {
    this.#held = alone ? -1 : this.#held + 1;
  }
}
