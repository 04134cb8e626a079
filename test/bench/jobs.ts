import { setTimeout as sleep } from "node:timers/promises";
import postgres from "postgres";
import { startPostgres } from "../support/postgres.ts";
import { type BenchJob, type JobEngine, projectCount, type Work } from "./job-engine.ts";
import { berthJobs } from "./jobs-berth.ts";
import { bossJobs } from "./jobs-boss.ts";
import { graphileJobs } from "./jobs-graphile.ts";
import { quantile, type Row, row } from "./table.ts";

const backlog = 1_000;
const singles = 200;
const newcomers = 10;

/** What was measured of one engine, in milliseconds from the call that queues a job to its being picked up. */
interface Figures {
  idle: number[];
  queued: number[];
  perSecond: number;
  newcomer: number[];
}

/** Lets jobs be waited for until they are picked up. */
class PickUps {
  readonly #at = new Map<number, number>();
  readonly #waiting = new Map<number, () => void>();
  #key = 0;
  /** How long each job takes, in milliseconds; 0: it does nothing. */
  workMs = 0;

  readonly work: Work = async (key) => {
    this.#at.set(key, performance.now());
    this.#waiting.get(key)?.();
    if (this.workMs > 0) await sleep(this.workMs);
  };

  job(project: number): BenchJob {
    return { key: this.#key++, project };
  }

  /** When the job was picked up. */
  async of(key: number): Promise<number> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#waiting.set(key, resolve);
    if (!this.#at.has(key)) await promise;
    return this.#at.get(key) ?? Number.NaN;
  }
}

async function measure(start: (work: Work) => Promise<JobEngine>): Promise<Figures> {
  const picked = new PickUps();
  const engine = await start(picked.work);
  console.error(engine.name);
  const latencies = async (jobs: readonly BenchJob[]) => {
    const began = performance.now();
    await engine.queue(jobs);
    return Promise.all(jobs.map(async ({ key }) => (await picked.of(key)) - began));
  };
  const many = (of: (n: number) => number) => Array.from({ length: backlog }, (_, n) => picked.job(of(n)));
  await latencies(many((n) => n % projectCount));
  await sleep(1000);
  const idle: number[] = [];
  for (let i = 0; i < singles; i++) {
    idle.push(...(await latencies([picked.job(i % projectCount)])));
    await sleep(5);
  }
  const queued: number[] = [];
  let spent = 0;
  for (let round = 0; round < 3; round++) {
    const times = await latencies(many((n) => n % projectCount));
    queued.push(...times);
    spent += Math.max(...times);
    await sleep(500);
  }
  picked.workMs = 10;
  const newcomer: number[] = [];
  for (let round = 0; round < newcomers; round++) {
    const busy = latencies(many(() => 0).slice(0, backlog / 4));
    await sleep(50);
    newcomer.push(...(await latencies([picked.job(1)])));
    await busy;
    await sleep(200);
  }
  await engine.close();
  return { idle, queued, perSecond: (3 * backlog * 1000) / spent, newcomer };
}

/**
 * Berth's job engine beside graphile-worker and pg-boss: one after the other on the same Postgres, which is durable, with
 * as many jobs at once and connections each.
 */
export async function measureJobs(): Promise<{ peer: string; rows: Row[] }[]> {
  const server = await startPostgres({ durable: true });
  try {
    const admin = postgres({ path: `${server.socketDir}/.s.PGSQL.5432`, username: "postgres", database: "postgres" });
    const figures: Figures[] = [];
    for (const [name, start] of [
      ["berth", berthJobs],
      ["graphile", graphileJobs],
      ["boss", bossJobs],
    ] as const) {
      await admin.unsafe(`create database ${name}`);
      const url = `postgres://postgres@${encodeURIComponent(server.socketDir)}/${name}`;
      figures.push(await measure((work) => start(url, work)));
    }
    await admin.end();
    const [ours, ...peers] = figures;
    if (ours === undefined) return [];
    return peers.map((peer, i) => ({ peer: ["graphile-worker", "pg-boss"][i] ?? "", rows: jobRows(ours, peer) }));
  } finally {
    await server.stop();
  }
}

function jobRows(ours: Figures, peer: Figures): Row[] {
  const ms = (work: string, of: (f: Figures) => number, goal = "") => row(work, "ms", ours, peer, of, goal);
  return [
    ms("job queued → picked up, idle, p50", (f) => quantile(f.idle, 0.5), "≤ 1 ms"),
    ms("the same, p99", (f) => quantile(f.idle, 0.99)),
    ms(`${String(backlog)} builds queued at once → picked up, p50`, (f) => quantile(f.queued, 0.5)),
    ms("the same, p99", (f) => quantile(f.queued, 0.99)),
    row("the same, jobs", "/s", ours, peer, (f) => f.perSecond, "≥ 10,000 /s"),
    ms(`another project's job behind ${String(backlog / 4)} of 10 ms, p50`, (f) => quantile(f.newcomer, 0.5)),
  ];
}
