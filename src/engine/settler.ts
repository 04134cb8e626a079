import { setTimeout as sleep } from "node:timers/promises";
import { type EndedAttempt, settleJobs } from "../db/leases.ts";
import { isDatabaseAway, type Pool } from "../db/scope.ts";
import type { Log } from "../log.ts";

/** How long to wait for a database that is away before the next try. */
const awayMs = 250;

interface Waiting {
  attempt: EndedAttempt;
  /** Called with whether it was settled; false: the lease is lost. */
  tell: (settled: boolean) => void;
}

/**
 * Writes how attempts ended. One write is under way at a time, and the next takes all that gathered meanwhile: on an idle
 * host an attempt is settled at once, and many short jobs share a commit. A database that is away is waited for: what an
 * attempt made would otherwise be made again.
 */
export class Settler {
  readonly #sql: Pool;
  readonly #log: Log;
  #waiting: Waiting[] = [];
  #writing = false;
  #patient = true;

  constructor(sql: Pool, log: Log) {
    this.#sql = sql;
    this.#log = log;
  }

  /** Resolves when it is written, or can't be; false: the lease is lost, nothing was written. */
  settle(attempt: EndedAttempt): Promise<boolean> {
    return new Promise((tell) => {
      this.#waiting.push({ attempt, tell });
      if (!this.#writing) void this.#write();
    });
  }

  /** From now on a database that is away is not waited for; leases that are held then run out. */
  giveUp(): void {
    this.#patient = false;
  }

  async #write(): Promise<void> {
    this.#writing = true;
    while (this.#waiting.length > 0) {
      const batch = this.#waiting;
      this.#waiting = [];
      const settled = await this.#settled(batch.map(({ attempt }) => attempt));
      for (const { attempt, tell } of batch) tell(settled.has(attempt.job.id));
    }
    this.#writing = false;
  }

  async #settled(attempts: readonly EndedAttempt[]): Promise<ReadonlySet<string>> {
    for (;;) {
      try {
        return await settleJobs(this.#sql, attempts);
      } catch (error) {
        if (isDatabaseAway(error) && this.#patient) await sleep(awayMs);
        else {
          this.#log.error({ err: error }, "settling failed; the leases will run out and the jobs be tried again");
          return new Set();
        }
      }
    }
  }
}
