import { BerthError, toBerthError } from "./errors.ts";

/** Movable work: any worker may do it. Host-bound work has no jobs; its rows are the inbox (docs/architecture.md). */
export const jobKinds = ["build", "pull", "push", "source", "deploy"] as const;
export type JobKind = (typeof jobKinds)[number];

export const jobStatuses = ["queued", "running", "succeeded", "failed", "cancelled"] as const;
export type JobStatus = (typeof jobStatuses)[number];

/** An error as a job, build or container shows it. */
export interface ShownError {
  code: string;
  message: string;
  line?: number;
  column?: number;
  instruction?: string;
  exitCode?: number;
}

/** What a pull job is asked; `auth` is `{username, password}` as JSON, sealed (core/keys.ts) for the purpose `pull:<job id>`. */
export interface PullPayload {
  reference: string;
  platform?: string;
  auth?: string;
}

/** What a push job is asked; `auth` as in a pull's, for the purpose `push:<job id>`. */
export interface PushPayload {
  /** What the client called the image. */
  reference: string;
  /** The image it meant then. */
  digest: string;
  /** Registry, repository and tag to put it under. */
  destination: string;
  auth?: string;
}

/** What a build's job is given: each as JSON, sealed for the purpose `build:<job id>`. */
export interface BuildPayload {
  /** `{username, password}` for its git repository. */
  auth?: string;
  /** Id → value, for its secret mounts. */
  secrets?: string;
  /** Registry → `{username, password}`. */
  registryAuth?: string;
}

/** For what secrets in a job's payload are sealed (core/keys.ts): that job alone. */
export function jobSealPurpose(job: { kind: JobKind; id: string }): string {
  return `${job.kind}:${job.id}`;
}

/** How an attempt at a job ended; `retry` puts it back into the queue. */
export type JobOutcome =
  | { status: "succeeded"; result: Record<string, unknown> }
  | { status: "failed"; error: ShownError }
  | { status: "cancelled" }
  /** `uncounted`: it was nobody's failure, such as when the worker was stopped in the midst. */
  | { status: "retry"; error: ShownError; afterMs: number; uncounted?: true };

/** The error as clients see it: code, message and the code's own facts. */
export function shownError(error: BerthError): ShownError {
  return { code: error.code, message: error.message, ...error.facts };
}

/** Why a job can't be done now though nothing is wrong with it: it is tried again after that time, as often as it takes. */
export class Postponed extends BerthError {
  readonly afterMs: number;

  constructor(reason: BerthError, afterMs: number) {
    super(reason.code, reason.message, { facts: reason.facts, cause: reason });
    this.afterMs = afterMs;
  }
}

/** What a thrown error makes of attempt `attempt` of at most `maxAttempts`. */
export function outcomeOfError(
  thrown: unknown,
  job: { attempt: number; maxAttempts: number; cancelRequested: boolean },
): JobOutcome {
  if (job.cancelRequested) return { status: "cancelled" };
  const error = toBerthError(thrown);
  if (error instanceof Postponed) {
    return { status: "retry", error: shownError(error), afterMs: error.afterMs, uncounted: true };
  }
  return error.retryable && job.attempt < job.maxAttempts
    ? { status: "retry", error: shownError(error), afterMs: retryDelay(job.attempt) }
    : { status: "failed", error: shownError(error) };
}

/** Milliseconds to wait before attempt `attempt + 1`: 1 s doubling to a minute, half of it random. */
export function retryDelay(attempt: number, random: number = Math.random()): number {
  const full = Math.min(1000 * 2 ** (attempt - 1), 60_000);
  return full / 2 + (full / 2) * random;
}
