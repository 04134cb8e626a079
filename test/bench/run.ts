import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { noContent, noXattrs, toByteString } from "../../src/image/layer-entry.ts";
import { writeTar } from "../../src/image/tar-write.ts";
import { startBerth } from "./berth.ts";
import { type Docker, startDocker } from "./docker.ts";
import type { Engine } from "./engine.ts";
import { stampProgram } from "./stamp.ts";
import { formatTable, quantile, type Row } from "./table.ts";

// `npm run bench [-- --runs N]`: the same work by Berth and by Docker Engine on this machine, in turn, in one run.
const runs = Number(process.argv[process.argv.indexOf("--runs") + 1] || 40);
const gapMs = 60;

async function tar(files: Record<string, Buffer>): Promise<Buffer> {
  const entries = Object.entries(files).map(([path, bytes]) => ({
    path: toByteString(path),
    type: "file" as const,
    mode: 0o755,
    uid: 0,
    gid: 0,
    mtime: { seconds: 0, nanoseconds: 0 },
    size: bytes.length,
    target: "",
    xattrs: noXattrs,
    content: bytes.length === 0 ? noContent : [bytes],
  }));
  const chunks: Uint8Array[] = [];
  for await (const chunk of writeTar(entries)) chunks.push(chunk);
  return Buffer.concat(chunks);
}

const nowMs = () => performance.timeOrigin + performance.now();

/** Milliseconds from sending the request to the container's first instruction. */
async function startOnce(engine: Engine, args: string[] = []): Promise<{ ms: number; id: string }> {
  const sent = nowMs();
  const id = await engine.start("bench-stamp:1", ["/stamp", ...args]);
  return { ms: Number(await engine.firstLine(id)) / 1e6 - sent, id };
}

interface Figures {
  /** The same container again and again, as an engine is used that runs several of one thing. */
  gaps: number[];
  /** Each with a command that no other had: nothing can have been made ready for it. */
  unknown: number[];
  backToBack: number[];
  removes: number[];
  perSecond: number;
  pssKb: number;
  rebuildMs: number[];
}

async function measure(engine: Engine, rebuild: () => Promise<void>): Promise<Figures> {
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

  step("rebuilds");
  const rebuildMs: number[] = [];
  await rebuild();
  for (let i = 0; i < 10; i++) {
    const before = performance.now();
    await rebuild();
    rebuildMs.push(performance.now() - before);
  }
  return { gaps, unknown, backToBack, removes, perSecond, pssKb: pss / 10, rebuildMs };
}

async function pssOf(pid: number): Promise<number> {
  const text = await readFile(`/proc/${String(pid)}/smaps_rollup`, "utf8").catch(() => "");
  return Number(/^Pss:\s+(\d+)/m.exec(text)?.[1] ?? 0);
}

const stamp = stampProgram();
const stampContext = await tar({
  Dockerfile: Buffer.from('FROM scratch\nCOPY stamp /stamp\nCMD ["/stamp"]\n'),
  stamp,
});
const files = Object.fromEntries(
  Array.from({ length: 200 }, (_, i) => [`files/${String(i)}.txt`, Buffer.from(`${String(i)}\n`)]),
);
const rebuildFiles = {
  Dockerfile: Buffer.from('FROM scratch\nCOPY stamp /stamp\nRUN ["/stamp"]\nCOPY files /files\n'),
  stamp,
  ...files,
};

const contextDir = await mkdtemp(join(tmpdir(), "berth-bench-context-"));
let berth: Engine | null = null;
let docker: Docker | null = null;
try {
  berth = await startBerth(17070);
  docker = await startDocker();
  const [us, them] = [berth, docker];
  for (const engine of [berth, ...(docker === null ? [] : [docker])]) await engine.build("bench-stamp:1", stampContext);
  await mkdir(join(contextDir, "files"));
  for (const [path, bytes] of Object.entries(rebuildFiles))
    await writeFile(join(contextDir, path), bytes, { mode: 0o755 });
  const rebuildContext = await tar(rebuildFiles);
  const ours = await measure(us, () => us.build("bench-rebuild:1", rebuildContext));
  const peer = them === null ? null : await measure(them, () => them.cliBuild("bench-rebuild:1", contextDir));
  const ms = (work: string, of: (f: Figures) => number[], p: number, goal: string): Row => ({
    work,
    unit: "ms",
    ours: quantile(of(ours), p),
    peer: peer === null ? null : quantile(of(peer), p),
    more: false,
    goal,
  });
  const rows: Row[] = [
    ms(
      `POST → first instruction, ${String(gapMs)} ms apart, p50`,
      (f) => f.gaps,
      0.5,
      "≤ 20 ms and ≥ 8 × (12 ms, 20 ×)",
    ),
    ms("the same, p95", (f) => f.gaps, 0.95, "≤ 20 ms"),
    ms("the same, a command that never ran before, p50", (f) => f.unknown, 0.5, "≥ 8 ×"),
    ms("POST → first instruction, back to back, p50", (f) => f.backToBack, 0.5, ""),
    {
      work: "starts, 4 in flight",
      unit: "/s",
      ours: ours.perSecond,
      peer: peer?.perSecond ?? null,
      more: true,
      goal: "≥ 100 /s, ≥ 10 ×",
    },
    ms("kill and remove a running container, p50", (f) => f.removes, 0.5, "≤ 10 ms"),
    {
      work: "memory kept per idle container (PSS)",
      unit: "kB",
      ours: ours.pssKb,
      peer: peer?.pssKb ?? null,
      more: false,
      goal: "≤ 1000 kB",
    },
    ms("rebuild, nothing changed, 200 files, p50 (the peer by its CLI)", (f) => f.rebuildMs, 0.5, "≥ 5 ×"),
  ];
  console.log(
    formatTable(rows, "Berth", docker === null ? "(docker.io is not installed)" : `${docker.name} (Debian, of 2023)`),
  );
} finally {
  await rm(contextDir, { recursive: true, force: true });
  await berth?.close();
  await docker?.close();
}
