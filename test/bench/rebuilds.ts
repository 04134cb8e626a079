import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { contextTar } from "./context.ts";
import type { Docker } from "./docker.ts";
import type { Engine } from "./engine.ts";
import { stampProgram } from "./stamp.ts";
import { quantile, type Row, row } from "./table.ts";

const rounds = 10;

type Files = Record<string, Buffer>;

const files: Files = Object.fromEntries(
  Array.from({ length: 200 }, (_, i) => [`files/${String(i)}.txt`, Buffer.from(`${String(i)}\n`)]),
);
const unchanged: Files = {
  Dockerfile: Buffer.from('FROM scratch\nCOPY stamp /stamp\nRUN ["/stamp"]\nCOPY files /files\n'),
  stamp: stampProgram(),
  ...files,
};
const changing: Files = {
  ...unchanged,
  Dockerfile: Buffer.from(
    'FROM scratch AS make\nCOPY stamp /stamp\nCOPY files /files\nRUN ["/stamp"]\nFROM scratch\nCOPY --from=make /files /files\n',
  ),
};

/** Builds again, the same and after a change; the peer by its command line, which is the only way to BuildKit. */
export async function measureRebuilds(berth: Engine, docker: Docker | null): Promise<Row[]> {
  return [
    await compare("rebuild, nothing changed, 200 files, p50 (the peer by its CLI)", berth, docker, () => unchanged),
    await compare("the same, a line changed: COPY, RUN, COPY --from, p50", berth, docker, (round) => ({
      ...changing,
      "files/100.txt": Buffer.from(`changed ${String(round)}\n`),
    })),
  ];
}

async function compare(
  work: string,
  berth: Engine,
  docker: Docker | null,
  filesOf: (round: number) => Files,
): Promise<Row> {
  const directory = await mkdtemp(join(tmpdir(), "berth-bench-context-"));
  try {
    await mkdir(join(directory, "files"));
    const ours = await times(async (round) => {
      const context = await contextTar(filesOf(round));
      return () => berth.build("bench-rebuild:1", context);
    });
    const peer =
      docker === null
        ? null
        : await times(async (round) => {
            for (const [path, bytes] of Object.entries(filesOf(round))) {
              await writeFile(join(directory, path), bytes, { mode: 0o755 });
            }
            return () => docker.cliBuild("bench-rebuild:1", directory);
          });
    return row(work, "ms", ours, peer, (all) => quantile(all, 0.5), "≥ 5 ×");
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

/** Milliseconds of each round after the first, which fills caches. `prepare` answers what is timed. */
async function times(prepare: (round: number) => Promise<() => Promise<void>>): Promise<number[]> {
  const all: number[] = [];
  for (let round = 0; round <= rounds; round++) {
    const rebuild = await prepare(round);
    const before = performance.now();
    await rebuild();
    if (round > 0) all.push(performance.now() - before);
  }
  return all;
}
