import { type BerthError, toBerthError } from "./errors.ts";

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

/** For what secrets in a job's payload are sealed (core/keys.ts): that job alone. */
export function jobSealPurpose(job: { kind: JobKind; id: string }): string {
  return `${job.kind}:${job.id}`;
}

/** How an attempt at a job ended; `retry` puts it back into the queue. */
export type JobOutcome =
  | { status: "succeeded"; result: Record<string, unknown> }
  | { status: "failed"; error: ShownError }
  | { status: "cancelled" }
  /** `uncounted`: the worker was stopped in the midst, which is nobody's failure. */
  | { status: "retry"; error: ShownError; afterMs: number; uncounted?: true };

/** The error as clients see it: code, message and the code's own facts. */
export function shownError(error: BerthError): ShownError {
  return { code: error.code, message: error.message, ...error.facts };
}

/** What a thrown error makes of attempt `attempt` of at most `maxAttempts`. */
export function outcomeOfError(
  thrown: unknown,
  job: { attempt: number; maxAttempts: number; cancelRequested: boolean },
): JobOutcome {
  if (job.cancelRequested) return { status: "cancelled" };
  const error = toBerthError(thrown);
  return error.retryable && job.attempt < job.maxAttempts
    ? { status: "retry", error: shownError(error), afterMs: retryDelay(job.attempt) }
    : { status: "failed", error: shownError(error) };
}

/** Milliseconds to wait before attempt `attempt + 1`: 1 s doubling to a minute, half of it random. */
export function retryDelay(attempt: number, random: number = Math.random()): number {
  const full = Math.min(1000 * 2 ** (attempt - 1), 60_000);
  return full / 2 + (full / 2) * random;
}
