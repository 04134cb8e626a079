/** A queued job of the benchmark: `key` tells it from others, `project` is who asked for it. */
export interface BenchJob {
  key: number;
  project: number;
}

/** An engine that runs jobs, as it is set up here: on one database, with connections and jobs at once as said. */
export interface JobEngine {
  name: string;
  /** Queues the jobs in one transaction. */
  queue(jobs: readonly BenchJob[]): Promise<void>;
  close(): Promise<void>;
}

/** Does a job; called when it is picked up. */
export type Work = (key: number) => Promise<void>;

/** The same for every engine: jobs at once, and connections besides one that listens. */
export const atOnce = 10;
export const connections = 4;
/** How many projects ask for jobs. */
export const projectCount = 50;
