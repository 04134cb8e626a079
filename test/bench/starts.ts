import { readFile } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import type { Engine } from "./engine.ts";
import { quantile, type Row, row } from "./table.ts";

const gapMs = 60;

const nowMs = () => performance.timeOrigin + performance.now();

/** Milliseconds from sending the request to the container's first instruction. */
async function startOnce(engine: Engine, args: string[] = []): Promise<{ ms: number; id: string }> {
  const sent = nowMs();
  const id = await engine.start("bench-stamp:1", ["/stamp", ...args]);
  return { ms: Number(await engine.firstLine(id)) / 1e6 - sent, id };
}

/** What was measured of starts, in milliseconds. */
export interface Starts {
  /** The same container again and again, as an engine is used that runs several of one thing. */
  gaps: number[];
  /** Each with a command that no other had: nothing can have been made ready for it. */
  unknown: number[];
  backToBack: number[];
  removes: number[];
  perSecond: number;
  pssKb: number;
}

/**
 * Starts and removes containers of `bench-stamp:1`.
 * @param runs how many of each
 */
export async function measureStarts(engine: Engine, runs: number): Promise<Starts> {
  const step = (what: string) => {
    console.error(engine.name, what);
  };
  // A server that has been up for a while: code is compiled, caches are filled.
  for (let i = 0; i < 30; i++) await engine.remove((await startOnce(engine)).id);
  step("starts with gaps");
  const gaps: number[] = [];
  const unknown: number[] = [];
  const removes: number[] = [];
  const withGaps = async (times: number[], args: (i: number) => string[]) => {
    for (let i = 0; i < runs; i++) {
      const { ms, id } = await startOnce(engine, args(i));
      times.push(ms);
      await sleep(gapMs);
      const before = performance.now();
      await engine.remove(id);
      removes.push(performance.now() - before);
      await sleep(gapMs);
    }
  };
  await withGaps(gaps, () => ["stay"]);
  step("starts of what never ran, with gaps");
  await withGaps(unknown, (i) => ["stay", String(i)]);
  step("starts back to back");
  const backToBack: number[] = [];
  const done: string[] = [];
  for (let i = 0; i < runs; i++) {
    const { ms, id } = await startOnce(engine);
    backToBack.push(ms);
    done.push(id);
  }
  for (const id of done.splice(0)) await engine.remove(id);

  step("starts, 4 in flight");
  const began = performance.now();
  let next = 0;
  const lane = async () => {
    while (next++ < runs) done.push((await startOnce(engine)).id);
  };
  await Promise.all([lane(), lane(), lane(), lane()]);
  const perSecond = (done.length * 1000) / (performance.now() - began);
  for (const id of done.splice(0)) await engine.remove(id);

  step("idle containers");
  for (let i = 0; i < 10; i++) {
    const id = await engine.start("bench-stamp:1", ["/stamp", "stay"]);
    await engine.firstLine(id);
    done.push(id);
  }
  let pss = 0;
  for (const id of done) for (const pid of await engine.keepers(id)) pss += await pssOf(pid);
  for (const id of done) await engine.remove(id);
  return { gaps, unknown, backToBack, removes, perSecond, pssKb: pss / 10 };
}

async function pssOf(pid: number): Promise<number> {
  const text = await readFile(`/proc/${String(pid)}/smaps_rollup`, "utf8").catch(() => "");
  return Number(/^Pss:\s+(\d+)/m.exec(text)?.[1] ?? 0);
}

/** The lines of the table. */
export function startRows(ours: Starts, peer: Starts | null): Row[] {
  const first = `POST → first instruction, ${String(gapMs)} ms apart`;
  return [
    row(`${first}, p50`, "ms", ours, peer, (s) => quantile(s.gaps, 0.5), "≤ 20 ms and ≥ 8 × (12 ms, 20 ×)"),
    row("the same, p95", "ms", ours, peer, (s) => quantile(s.gaps, 0.95), "≤ 20 ms"),
    row("the same, a command that never ran before, p50", "ms", ours, peer, (s) => quantile(s.unknown, 0.5), "≥ 8 ×"),
    row("the same, back to back, p50", "ms", ours, peer, (s) => quantile(s.backToBack, 0.5), ""),
    row("starts, 4 in flight", "/s", ours, peer, (s) => s.perSecond, "≥ 100 /s, ≥ 10 ×"),
    row("kill and remove a running container, p50", "ms", ours, peer, (s) => quantile(s.removes, 0.5), "≤ 10 ms"),
    row("memory kept per idle container (PSS)", "kB", ours, peer, (s) => s.pssKb, "≤ 1000 kB"),
  ];
}
