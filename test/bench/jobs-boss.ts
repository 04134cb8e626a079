import { PgBoss } from "pg-boss";
import { atOnce, connections, type JobEngine, type Work } from "./job-engine.ts";

/** pg-boss woken by notifications, fetching without a pause while there is more, each worker a batch. */
export async function bossJobs(url: string, work: Work): Promise<JobEngine> {
  const boss = new PgBoss({ connectionString: url, max: connections, useListenNotify: true, schedule: false });
  boss.on("error", () => undefined);
  await boss.start();
  await boss.createQueue("bench", { notify: true });
  await boss.work<{ key: number }>(
    "bench",
    { batchSize: atOnce, burstWhenBatchFull: true, pollingIntervalSeconds: 0.5, notifyPollingIntervalSeconds: 1 },
    async (jobs) => {
      await Promise.all(jobs.map(({ data }) => work(data.key)));
    },
  );
  return {
    name: "pg-boss",
    async queue(jobs) {
      if (jobs.length === 1) await boss.send("bench", { key: jobs[0]?.key });
      else
        await boss.insert(
          "bench",
          jobs.map(({ key }) => ({ data: { key } })),
        );
    },
    close: () => boss.stop({ graceful: true, close: true }),
  };
}
