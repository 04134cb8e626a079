import { setTimeout as sleep } from "node:timers/promises";
import { BerthError, toBerthError } from "../core/errors.ts";
import { type JobKind, type JobOutcome, outcomeOfError, shownError } from "../core/job.ts";
import { type ClaimedJob, claimJobs, extendLeases, leaseSeconds, type Room, takeLost } from "../db/leases.ts";
import { databaseError, isDatabaseAway } from "../db/scope.ts";
import { topics } from "../db/wakeups.ts";
import { armFailpoint, type ReachFailpoint } from "../isolation/failpoint.ts";
import { coalesced } from "./coalesced.ts";
import type { Services } from "./services.ts";
import { Settler } from "./settler.ts";

/**
 * Does one attempt at a job and answers with its result. Throws a BerthError whose code says whether another attempt
 * can help. Steps must be idempotent: an attempt may be cut off anywhere. `signal` aborts when the job is cancelled or
 * the lease is lost; then nothing more may be written. What it passes to `afterwards` gives back what the attempt has on the
 * host: once its end is settled, so that nobody waits for it, and before another attempt at the job here.
 */
export type JobHandler = (
  job: ClaimedJob,
  services: Services,
  signal: AbortSignal,
  afterwards: (work: () => Promise<void>) => void,
) => Promise<Record<string, unknown>>;

const soonMs = 5;

/** Within this time who waited for a job is told of its end, which goes before what only has to be done. */
const toldMs = 10;

interface Held {
  job: ClaimedJob;
  abort: AbortController;
  cancelRequested: boolean;
  done: Promise<void>;
}

/**
 * Claims movable jobs, runs them side by side, keeps their leases and settles them. The protocol: claim (attempt and
 * epoch are raised) → extend every second → settle with the same epoch. A job whose worker is gone is settled as a retry,
 * or as failed after its last attempt, by whichever worker notices.
 */
export class JobRunner {
  readonly #services: Services;
  readonly #handlers: Partial<Record<JobKind, JobHandler>>;
  readonly #atOnce: Record<JobKind, number>;
  readonly #settler: Settler;
  readonly #reach: ReachFailpoint;
  /** Jobs whose lease this host keeps: they run, or how they ended is being written. */
  readonly #held = new Map<string, Held>();
  /** Those of them that run. */
  readonly #running = new Set<Held>();
  readonly #timers: NodeJS.Timeout[] = [];
  readonly #unsubscribe: (() => void)[] = [];
  readonly #claim: () => void;
  readonly #keepLeases: () => void;
  /** The last claim: what it takes is run, or given back. */
  #claiming = Promise.resolve();
  #stopped = false;

  /** @param atOnce how many jobs of each kind this host runs side by side */
  constructor(services: Services, handlers: Partial<Record<JobKind, JobHandler>>, atOnce: Record<JobKind, number>) {
    this.#services = services;
    this.#handlers = handlers;
    this.#atOnce = atOnce;
    this.#reach = armFailpoint(services.config.failpoint);
    this.#settler = new Settler(services.connection.sql, services.log);
    const told = (what: string) => (error: unknown) => services.log.warn({ err: error }, `${what} failed`);
    this.#claim = coalesced(() => this.#claimOnce(), told("claiming jobs"));
    this.#keepLeases = coalesced(() => this.#extendOnce(), told("extending leases"));
  }

  start(): void {
    // First, and without waiting for leases: what this host runs now, its worker before this one had claimed.
    void this.#rescue(true).finally(() => {
      if (this.#stopped) return;
      const { wakeups } = this.#services;
      this.#unsubscribe.push(
        wakeups.subscribe(topics.jobs, this.#claim),
        wakeups.subscribe(topics.cancels, this.#keepLeases),
      );
      this.#timers.push(
        setInterval(this.#claim, 1000),
        setInterval(this.#keepLeases, 1000),
        setInterval(() => void this.#rescue(false), (leaseSeconds * 1000) / 3),
      );
      this.#claim();
    });
  }

  /** Whether no job of this host is running. */
  get idle(): boolean {
    return this.#held.size === 0;
  }

  /** Stops claiming, aborts what runs and puts it back: the attempt does not count. */
  async stop(): Promise<void> {
    this.#stopped = true;
    for (const unsubscribe of this.#unsubscribe) unsubscribe();
    for (const timer of this.#timers) clearInterval(timer);
    this.#settler.giveUp();
    await this.#claiming.catch(() => undefined);
    const held = [...this.#held.values()];
    for (const { abort } of held) abort.abort(new BerthError("unavailable", "The worker is stopping."));
    await Promise.allSettled(held.map(({ done }) => done));
  }

  #room(): Room {
    const kinds: Room["kinds"] = {};
    for (const kind of Object.keys(this.#handlers) as JobKind[]) kinds[kind] = this.#atOnce[kind];
    let suspect = true;
    for (const { job } of this.#running) {
      kinds[job.kind] = (kinds[job.kind] ?? 0) - 1;
      suspect &&= job.lost === 0;
    }
    return { kinds: Object.fromEntries(Object.entries(kinds).filter(([, n]) => n > 0)), suspect };
  }

  async #claimOnce(): Promise<void> {
    const room = this.#room();
    if (this.#stopped || Object.keys(room.kinds).length === 0) return;
    const claim = claimJobs(this.#services.connection.sql, this.#services.host.id, room).then((jobs) => {
      for (const job of jobs) this.#run(job);
      // One that comes alone was most often all there was: it goes before asking for more.
      if (jobs.length > 1) this.#claim();
      else if (jobs.length > 0) setTimeout(this.#claim, soonMs).unref();
    });
    this.#claiming = claim;
    await claim;
  }

  #run(job: ClaimedJob): void {
    const before = this.#held.get(job.id);
    const held: Held = { job, abort: new AbortController(), cancelRequested: false, done: Promise.resolve() };
    this.#held.set(job.id, held);
    this.#running.add(held);
    // What an attempt has on the host is gone when it has ended, and not before: one that another host took over meanwhile.
    before?.abort.abort(leaseLost());
    held.done = (before?.done ?? Promise.resolve())
      .then(() => this.#attempt(held))
      .finally(() => {
        if (this.#held.get(job.id) === held) this.#held.delete(job.id);
      });
  }

  async #attempt(held: Held): Promise<void> {
    const { job, abort } = held;
    let outcome: JobOutcome;
    const after: (() => Promise<void>)[] = [];
    this.#reach("job.claimed");
    try {
      const handler = this.#handlers[job.kind];
      if (handler === undefined) throw new BerthError("not_supported", `This worker does not do ${job.kind} jobs.`);
      outcome = {
        status: "succeeded",
        result: await handler(job, this.#services, abort.signal, (work) => after.push(work)),
      };
    } catch (error) {
      outcome = this.#outcomeOf(error, held);
    }
    this.#reach("job.ended");
    const isFull = this.#room().kinds[job.kind] === undefined;
    this.#running.delete(held);
    // Otherwise nothing is queued that could begin before this end is settled, which wakes all hosts.
    if (isFull || job.lost > 0) this.#claim();
    if (!(await this.#settler.settle({ job, outcome }))) {
      this.#services.log.warn({ job: job.id }, "a job's lease was lost");
    }
    this.#reach("job.settled");
    if (after.length > 0) await sleep(toldMs);
    for (const work of after) {
      await work().catch((error: unknown) => {
        this.#services.log.error({ err: error, job: job.id }, "what a job has left could not be taken away");
      });
    }
  }

  #outcomeOf(thrown: unknown, { job, cancelRequested }: Held): JobOutcome {
    const error = toBerthError(databaseError(thrown));
    // A worker that is stopped and a database that is away are no failures of the job.
    const passing = this.#stopped || isDatabaseAway(thrown);
    if (passing && !cancelRequested) {
      return { status: "retry", error: shownError(error), afterMs: this.#stopped ? 0 : 1000, uncounted: true };
    }
    if (error.code === "internal") this.#services.log.error({ err: thrown, job: job.id }, "a job failed");
    return outcomeOfError(error, { ...job, cancelRequested });
  }

  async #extendOnce(): Promise<void> {
    if (this.#held.size === 0) return;
    const asked = [...this.#held.values()];
    const kept = await extendLeases(
      this.#services.connection.sql,
      asked.map(({ job }) => job),
    );
    for (const held of asked) {
      const lease = kept.get(held.job.id);
      if (lease === undefined) held.abort.abort(leaseLost());
      else if (lease.cancelRequested) {
        held.cancelRequested = true;
        held.abort.abort(new BerthError("cancelled", "It was cancelled."));
      }
    }
  }

  async #rescue(own: boolean): Promise<void> {
    const { connection, host, log } = this.#services;
    try {
      for (const job of await takeLost(connection.sql, host.id, { held: [...this.#held.keys()], own })) {
        const outcome = outcomeOfLoss(job);
        log.warn({ job: job.id, outcome: outcome.status }, "a job's worker is gone");
        await this.#settler.settle({ job, outcome });
      }
    } catch (error) {
      log.warn({ err: error }, "looking for jobs whose worker is gone failed");
    }
  }
}

function leaseLost(): BerthError {
  return new BerthError("unavailable", "The lease is lost.");
}

/** A job that lost its worker is tried again, until its last attempt did that too: then it stays away from workers. */
function outcomeOfLoss(job: ClaimedJob): JobOutcome {
  const error =
    job.attempt < job.maxAttempts
      ? new BerthError("host_unavailable", "The worker that ran it is gone.")
      : new BerthError(
          "attempts_exhausted",
          `Its worker was gone before it ended, at attempt ${String(job.attempt)} too.`,
        );
  return outcomeOfError(error, { ...job, cancelRequested: false });
}
