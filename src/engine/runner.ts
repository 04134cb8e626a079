import { BerthError, toBerthError } from "../core/errors.ts";
import { type JobKind, type JobOutcome, outcomeOfError, shownError } from "../core/job.ts";
import { type ClaimedJob, claimJobs, extendLeases, leaseSeconds, settleJob, takeExpired } from "../db/leases.ts";
import { topics } from "../db/wakeups.ts";
import type { Services } from "./services.ts";

/**
 * Does one attempt at a job and answers with its result. Throws a BerthError whose code says whether another attempt
 * can help. Steps must be idempotent: an attempt may be cut off anywhere. `signal` aborts when the job is cancelled or
 * the lease is lost; then nothing more may be written.
 */
export type JobHandler = (job: ClaimedJob, services: Services, signal: AbortSignal) => Promise<Record<string, unknown>>;

interface Held {
  job: ClaimedJob;
  abort: AbortController;
  cancelRequested: boolean;
  done: Promise<void>;
}

/**
 * Claims movable jobs, runs them side by side, keeps their leases and settles them. The protocol: claim (attempt and
 * epoch are raised) → extend every third of a lease → settle with the same epoch. A job whose lease ran out is settled
 * as a retry, or as failed after its last attempt, by whichever worker notices.
 */
export class JobRunner {
  readonly #services: Services;
  readonly #handlers: Partial<Record<JobKind, JobHandler>>;
  readonly #concurrency: number;
  readonly #held = new Map<string, Held>();
  readonly #timers: NodeJS.Timeout[] = [];
  #unsubscribe: () => void = () => undefined;
  #claiming = false;
  /** How often claiming was asked for: asking during a claim makes it claim once more. */
  #asked = 0;
  #stopped = false;

  constructor(services: Services, handlers: Partial<Record<JobKind, JobHandler>>, concurrency: number) {
    this.#services = services;
    this.#handlers = handlers;
    this.#concurrency = concurrency;
  }

  start(): void {
    const claim = () => void this.#claim();
    this.#unsubscribe = this.#services.wakeups.subscribe(topics.jobs, claim);
    this.#timers.push(
      setInterval(claim, 1000),
      setInterval(() => void this.#keepLeases(), 1000),
      setInterval(() => void this.#rescue(), (leaseSeconds * 1000) / 3),
    );
    claim();
  }

  /** Whether no job of this host is running. */
  get idle(): boolean {
    return this.#held.size === 0;
  }

  /** Stops claiming, aborts what runs and puts it back: the attempt does not count. */
  async stop(): Promise<void> {
    this.#stopped = true;
    this.#unsubscribe();
    for (const timer of this.#timers) clearInterval(timer);
    const held = [...this.#held.values()];
    for (const { abort } of held) abort.abort(new BerthError("unavailable", "The worker is stopping."));
    await Promise.allSettled(held.map(({ done }) => done));
  }

  async #claim(): Promise<void> {
    this.#asked++;
    if (this.#claiming) return;
    this.#claiming = true;
    try {
      let answered: number;
      do {
        answered = this.#asked;
        const room = this.#concurrency - this.#held.size;
        if (room <= 0 || this.#stopped) return;
        for (const job of await claimJobs(this.#services.connection.db, this.#services.host.id, room)) this.#run(job);
      } while (answered !== this.#asked);
    } catch (error) {
      this.#services.log.warn({ err: error }, "claiming jobs failed");
    } finally {
      this.#claiming = false;
    }
  }

  #run(job: ClaimedJob): void {
    const held: Held = { job, abort: new AbortController(), cancelRequested: false, done: Promise.resolve() };
    this.#held.set(job.id, held);
    held.done = this.#attempt(held).finally(() => {
      this.#held.delete(job.id);
      void this.#claim();
    });
  }

  async #attempt(held: Held): Promise<void> {
    const { job, abort } = held;
    const { log, connection } = this.#services;
    let outcome: JobOutcome;
    try {
      const handler = this.#handlers[job.kind];
      if (handler === undefined) throw new BerthError("not_supported", `This worker does not do ${job.kind} jobs.`);
      outcome = { status: "succeeded", result: await handler(job, this.#services, abort.signal) };
    } catch (error) {
      outcome =
        this.#stopped && !held.cancelRequested
          ? { status: "retry", error: shownError(toBerthError(error)), afterMs: 0, uncounted: true }
          : outcomeOfError(error, { ...job, cancelRequested: held.cancelRequested });
      if (!(error instanceof BerthError) || error.code === "internal")
        log.error({ err: error, job: job.id }, "a job failed");
    }
    try {
      if (!(await settleJob(connection.db, job, outcome))) log.warn({ job: job.id }, "a job's lease was lost");
    } catch (error) {
      log.warn({ err: error, job: job.id }, "settling failed; the lease will run out and the job be tried again");
    }
  }

  async #keepLeases(): Promise<void> {
    if (this.#held.size === 0) return;
    const asked = [...this.#held.values()];
    try {
      const kept = await extendLeases(
        this.#services.connection.db,
        asked.map(({ job }) => job),
      );
      for (const held of asked) {
        const lease = kept.get(held.job.id);
        if (lease === undefined) held.abort.abort(new BerthError("unavailable", "The lease is lost."));
        else if (lease.cancelRequested) {
          held.cancelRequested = true;
          held.abort.abort(new BerthError("cancelled", "It was cancelled."));
        }
      }
    } catch (error) {
      this.#services.log.warn({ err: error }, "extending leases failed");
    }
  }

  async #rescue(): Promise<void> {
    const { connection, host, log } = this.#services;
    try {
      for (const job of await takeExpired(connection.db, host.id)) {
        const lost = new BerthError("unavailable", "The worker that ran it is gone.");
        const outcome = outcomeOfError(lost, { ...job, cancelRequested: false });
        log.warn({ job: job.id, outcome: outcome.status }, "a job's worker is gone");
        await settleJob(connection.db, job, outcome);
      }
    } catch (error) {
      log.warn({ err: error }, "rescuing jobs failed");
    }
  }
}
