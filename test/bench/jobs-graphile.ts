import { Logger, makeWorkerUtils, run } from "graphile-worker";
import { atOnce, connections, type JobEngine, type Work } from "./job-engine.ts";

/** graphile-worker as its documentation tunes it for many short jobs: a local queue and batched completion. */
export async function graphileJobs(url: string, work: Work): Promise<JobEngine> {
  const utils = await makeWorkerUtils({ connectionString: url, maxPoolSize: 1 });
  await utils.migrate();
  const runner = await run({
    connectionString: url,
    maxPoolSize: connections,
    noHandleSignals: true,
    logger: new Logger(() => () => undefined),
    taskList: { bench: async (payload) => work((payload as { key: number }).key) },
    preset: {
      worker: {
        concurrentJobs: atOnce,
        pollInterval: 1000,
        localQueue: { size: 100 },
        completeJobBatchDelay: 0,
        failJobBatchDelay: 0,
      },
    },
  });
  return {
    name: "graphile-worker",
    async queue(jobs) {
      await utils.addJobs(jobs.map(({ key }) => ({ identifier: "bench", payload: { key } })));
    },
    async close() {
      await runner.stop();
      await utils.release();
    },
  };
}
