import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { Berth } from "./berth.ts";
import { contextTar } from "./context.ts";
import type { Docker } from "./docker.ts";
import { stampProgram } from "./stamp.ts";
import { quantile, type Row, row } from "./table.ts";

/** Builds that are measured, and those before them: caches fill, and what a server does for the first times is compiled. */
const rounds = { cold: { warm: 2, timed: 10 }, again: { warm: 20, timed: 20 }, more: { warm: 2, timed: 20 } };
type Rounds = (typeof rounds)[keyof typeof rounds];
/** How long somebody takes who looks at a build before the next, in milliseconds. */
const apart = 200;

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

const base = 'FROM scratch\nCOPY busybox /bin/busybox\nRUN ["/bin/busybox","--install","-s","/bin"]\n';
const cold: Files = {
  ...files,
  Dockerfile: Buffer.from(`FROM bench-base:1 AS make
COPY files /files
RUN mkdir /out && cat /files/* > /out/all && for i in $(seq 2000); do echo $i > /out/$i; done
FROM bench-base:1
COPY --from=make /out /out
RUN sort -n /out/all > /sorted
`),
};

/** Builds anew, again, and after a change; the peer by its command line, which is the only way to BuildKit. */
export async function measureRebuilds(berth: Berth, docker: Docker | null): Promise<Row[]> {
  const ground = await contextTar({ Dockerfile: Buffer.from(base), busybox: await readFile("/bin/busybox") });
  await berth.build("bench-base:1", ground);
  await docker?.build("bench-base:1", ground);
  return [
    await compare(
      "cold build: COPY, RUN, COPY --from, RUN with 2,000 files, p50",
      berth,
      docker,
      () => cold,
      rounds.cold,
      {
        noCache: true,
      },
    ),
    await compare(
      `rebuild, nothing changed, 200 files, ${String(apart)} ms apart, p50 (the peer by its CLI)`,
      berth,
      docker,
      () => unchanged,
      rounds.again,
      { apart },
    ),
    await compare("the same, back to back", berth, docker, () => unchanged, rounds.more),
    await compare(
      `a line changed: COPY, RUN, COPY --from, ${String(apart)} ms apart, p50`,
      berth,
      docker,
      (round) => changed(round),
      rounds.again,
      { apart },
    ),
    await compare("the same, back to back", berth, docker, (round) => changed(round + 100), rounds.more),
  ];
}

const changed = (round: number): Files => ({
  ...changing,
  "files/100.txt": Buffer.from(`changed ${String(round)}\n`),
});

async function compare(
  work: string,
  berth: Berth,
  docker: Docker | null,
  filesOf: (round: number) => Files,
  rounds: Rounds,
  { noCache = false, apart = 0 }: { noCache?: boolean; apart?: number } = {},
): Promise<Row> {
  const directory = await mkdtemp(join(tmpdir(), "berth-bench-context-"));
  try {
    await mkdir(join(directory, "files"));
    const ours = await times(rounds, apart, async (round) => {
      const context = await contextTar(filesOf(round));
      return () => berth.build("bench-rebuild:1", context, { noCache });
    });
    const peer =
      docker === null
        ? null
        : await times(rounds, apart, async (round) => {
            for (const [path, bytes] of Object.entries(filesOf(round))) {
              await writeFile(join(directory, path), bytes, { mode: 0o755 });
            }
            return () => docker.cliBuild("bench-rebuild:1", directory, { noCache });
          });
    return row(work, "ms", ours, peer, (all) => quantile(all, 0.5), noCache ? "≥ 1 ×" : "≥ 5 ×");
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

/** Milliseconds of each round after the first ones. `prepare` answers what is timed. */
async function times(
  { warm, timed }: Rounds,
  apart: number,
  prepare: (round: number) => Promise<() => Promise<void>>,
): Promise<number[]> {
  const all: number[] = [];
  for (let round = -warm; round < timed; round++) {
    const rebuild = await prepare(round);
    await sleep(apart);
    const before = performance.now();
    await rebuild();
    if (round >= 0) all.push(performance.now() - before);
  }
  return all;
}
