import { setTimeout as sleep } from "node:timers/promises";
import { BerthError } from "../core/errors.ts";

export interface RetryOptions {
  /** Attempts in a row that may fail before it is given up. */
  attempts: number;
  /** Wait after the first failure; it doubles, and half of it is random. */
  firstDelayMs: number;
}

const maxDelayMs = 30_000;

/** A failure that may pass by itself; `afterMs` is when the other side says to ask again. */
export class Transient extends Error {
  readonly error: BerthError;
  readonly afterMs: number;

  constructor(error: BerthError, afterMs = 0) {
    super(error.message, { cause: error });
    this.error = error;
    this.afterMs = afterMs;
  }
}

/** When to try again. */
export class Retry {
  readonly #options: RetryOptions;

  constructor(options: RetryOptions = { attempts: 4, firstDelayMs: 250 }) {
    this.#options = options;
  }

  /** Runs the task until it succeeds, fails for good, or has failed too often in a row. */
  async run<T>(signal: AbortSignal, task: () => Promise<T>): Promise<T> {
    for (let failures = 1; ; failures++) {
      try {
        return await task();
      } catch (error) {
        await this.wait(error, failures, signal);
      }
    }
  }

  /** Waits before the next attempt after so many failures. @throws the error itself when there is to be none. */
  async wait(error: unknown, failures: number, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    if (!(error instanceof Transient)) throw error;
    if (failures >= this.#options.attempts || error.afterMs > maxDelayMs) throw error.error;
    const full = Math.min(this.#options.firstDelayMs * 2 ** (failures - 1), maxDelayMs);
    const delay = Math.max(error.afterMs, full / 2 + (full / 2) * Math.random());
    // Aborting rejects with the signal's reason, not with a timer's AbortError.
    await sleep(delay, undefined, { signal }).catch(() => undefined);
    signal.throwIfAborted();
  }
}
