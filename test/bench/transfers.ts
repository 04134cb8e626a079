import { execFile } from "node:child_process";
import { promisify } from "node:util";
import type { TestRegistry } from "../support/registry.ts";
import { contextTar } from "./context.ts";
import { type DebianBase, publishDebian } from "./debian.ts";
import type { Engine } from "./engine.ts";
import { quantile, type Row, row } from "./table.ts";

/** What was measured of pulls and pushes. */
export interface Transfers {
  pullMs: number[];
  pushMs: number[];
  /** What a push added to the registry, in kB. */
  pushKb: number[];
}

const rounds = 3;

/** Pulls Debian's base, and publishes what is built on it after changes of one line. */
export async function measureTransfers(engine: Engine, base: DebianBase, registry: TestRegistry): Promise<Transfers> {
  const pullMs: number[] = [];
  const pushMs: number[] = [];
  const pushKb: number[] = [];
  const own = engine.name.toLowerCase().split(" ")[0] ?? "";
  for (let i = 0; i < rounds; i++) {
    const tag = String(i);
    await publishDebian(base, registry.host, `debian-${own}`, tag);
    const began = performance.now();
    await engine.pull(`${registry.host}/debian-${own}:${tag}`);
    pullMs.push(performance.now() - began);
  }
  for (let i = 0; i <= rounds; i++) {
    const files = {
      Dockerfile: Buffer.from(`FROM ${registry.host}/debian-${own}:0\nCOPY app.txt /app.txt\n`),
      "app.txt": Buffer.from(`line ${String(i)}\n`),
    };
    await engine.build("bench-app:1", await contextTar(files));
    const before = await kilobytes(registry.blobs);
    const began = performance.now();
    await engine.push("bench-app:1", `${registry.host}/app-${own}:${String(i)}`);
    // The first one takes the base along.
    if (i === 0) continue;
    pushMs.push(performance.now() - began);
    pushKb.push((await kilobytes(registry.blobs)) - before);
  }
  return { pullMs, pushMs, pushKb };
}

/** The sum of the sizes of the files below a directory. */
async function kilobytes(directory: string): Promise<number> {
  const { stdout } = await promisify(execFile)("find", [directory, "-type", "f", "-printf", "%s\\n"]);
  return stdout.split("\n").reduce((sum, line) => sum + Number(line), 0) / 1024;
}

/** The lines of the table. */
export function transferRows(ours: Transfers, peer: Transfers | null): Row[] {
  const p50 = (of: (figures: Transfers) => number[]) => (figures: Transfers) => quantile(of(figures), 0.5);
  return [
    row(
      "pull of Debian's base from a registry on this machine, p50",
      "ms",
      ours,
      peer,
      p50((t) => t.pullMs),
      "≤ 700 ms, ≥ 4 ×",
    ),
    row(
      "push after a one-line change: what is new in the registry",
      "kB",
      ours,
      peer,
      p50((t) => t.pushKb),
      "",
    ),
    row(
      "the same, time, p50",
      "ms",
      ours,
      peer,
      p50((t) => t.pushMs),
      "",
    ),
  ];
}
