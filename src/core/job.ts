/** Movable work: any worker may do it. Host-bound work has no jobs; its rows are the inbox (docs/architecture.md). */
export const jobKinds = ["build", "pull", "push"] as const;
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

/** Milliseconds to wait before attempt `attempt + 1`: 1 s doubling to a minute, half of it random. */
export function retryDelay(attempt: number, random: number = Math.random()): number {
  const full = Math.min(1000 * 2 ** (attempt - 1), 60_000);
  return full / 2 + (full / 2) * random;
}
