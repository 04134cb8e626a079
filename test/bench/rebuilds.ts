import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { contextTar } from "./context.ts";
import type { Docker } from "./docker.ts";
import type { Engine } from "./engine.ts";
import { stampProgram } from "./stamp.ts";
import { quantile, type Row, row } from "./table.ts";

const rounds = 10;

const files = {
  Dockerfile: Buffer.from('FROM scratch\nCOPY stamp /stamp\nRUN ["/stamp"]\nCOPY files /files\n'),
  stamp: stampProgram(),
  ...Object.fromEntries(
    Array.from({ length: 200 }, (_, i) => [`files/${String(i)}.txt`, Buffer.from(`${String(i)}\n`)]),
  ),
};

/** Builds the same again; the peer by its command line, which is the only way to BuildKit. */
export async function measureRebuilds(berth: Engine, docker: Docker | null): Promise<Row[]> {
  const context = await contextTar(files);
  const directory = await mkdtemp(join(tmpdir(), "berth-bench-context-"));
  try {
    await mkdir(join(directory, "files"));
    for (const [path, bytes] of Object.entries(files)) await writeFile(join(directory, path), bytes, { mode: 0o755 });
    const ours = await times(() => berth.build("bench-rebuild:1", context));
    const peer = docker === null ? null : await times(() => docker.cliBuild("bench-rebuild:1", directory));
    const work = "rebuild, nothing changed, 200 files, p50 (the peer by its CLI)";
    return [row(work, "ms", ours, peer, (all) => quantile(all, 0.5), "≥ 5 ×")];
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

async function times(rebuild: () => Promise<void>): Promise<number[]> {
  const all: number[] = [];
  await rebuild();
  for (let i = 0; i < rounds; i++) {
    const before = performance.now();
    await rebuild();
    all.push(performance.now() - before);
  }
  return all;
}
