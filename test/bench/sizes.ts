import { readFileSync, writeFileSync } from "node:fs";
import { Readable } from "node:stream";
import { writeTar } from "../../src/image/tar-write.ts";
import { entry } from "../support/image.ts";
import type { Berth } from "./berth.ts";
import { contextTar } from "./context.ts";
import { quantile, type Row } from "./table.ts";

const mebibytes = 1024;
const rounds = 10;
const base = 'FROM scratch\nCOPY busybox /bin/busybox\nRUN ["/bin/busybox","--install","-s","/bin"]\n';

/** What large contexts and layers take of the servers' memory, and what a small change of a large image takes of time. */
export async function measureSizes(berth: Berth, registry: string | null): Promise<Row[]> {
  const text = (dockerfile: string) => contextTar({ Dockerfile: Buffer.from(dockerfile) });
  await berth.build(
    "bench-sizes:1",
    await contextTar({ Dockerfile: Buffer.from(base), busybox: readFileSync("/bin/busybox") }),
  );
  // Code that runs for the first time is compiled and kept.
  await berth.build("bench-small:1", largeContext("FROM bench-sizes:1\nCOPY . /\n", 8));
  const memory = async (work: string, run: () => Promise<void>): Promise<Row> => ({
    work: `most memory of API and worker beyond before: ${work}`,
    unit: "MB",
    ours: await grown(berth.servers(), run),
    peer: null,
    more: false,
    goal: "flat",
  });
  const written = `RUN dd if=/dev/urandom of=/large bs=1M count=${String(mebibytes)} 2>/dev/null`;
  const rows = [
    await memory("a context of 8 MB through COPY", () =>
      berth.build("bench-context:1", largeContext("FROM bench-sizes:1\nCOPY . /\n", 8)),
    ),
    await memory("a context of 1 GB through COPY", () =>
      berth.build("bench-context:1", largeContext("FROM bench-sizes:1\nCOPY . /\n", mebibytes)),
    ),
    await memory("a RUN that writes 1 GB", async () =>
      berth.build("bench-written:1", await text(`FROM bench-sizes:1\n${written}\n`)),
    ),
  ];
  if (registry !== null)
    rows.push(await memory("its push", () => berth.push("bench-written:1", `${registry}/bench-written:1`)));
  for (const directories of [1, 1000]) {
    const files = `for i in $(seq ${String(directories)}); do mkdir -p /f/$i; for j in $(seq 50); do : > /f/$i/$j; done; done`;
    await berth.build("bench-files:1", await text(`FROM bench-sizes:1\nRUN ${files}\n`));
    const times: number[] = [];
    for (let i = 0; i < rounds; i++) {
      const context = await text(`FROM bench-files:1\nRUN echo ${String(i)} > /f/1/1\n`);
      const began = performance.now();
      await berth.build("bench-file:1", context);
      times.push(performance.now() - began);
    }
    const work = `build whose RUN changes one of ${String(directories * 50)} files, p50`;
    rows.push({ work, unit: "ms", ours: quantile(times, 0.5), peer: null, more: false, goal: "the same" });
  }
  return rows;
}

/** A context with one file of so many MiB that nothing compresses, as it is sent. */
function largeContext(dockerfile: string, size: number): Readable {
  const block = crypto.getRandomValues(Buffer.alloc(2 ** 16));
  async function* content(): AsyncGenerator<Uint8Array> {
    for (let i = 0; i < size * 16; i++) {
      block.writeUInt32LE(i);
      yield await Promise.resolve(Buffer.from(block));
    }
  }
  const large = { ...entry("large"), size: size * 2 ** 20, content: content() };
  return Readable.from(writeTar([entry("Dockerfile", { content: dockerfile }), large]), { objectMode: false });
}

/** By how many MB the resident memory of processes was higher at its peak than before, together. */
async function grown(pids: readonly number[], run: () => Promise<void>): Promise<number> {
  const megabytes = (pid: number, field: "VmRSS" | "VmHWM") =>
    Number(new RegExp(`^${field}:\\s+(\\d+)`, "m").exec(readFileSync(`/proc/${String(pid)}/status`, "utf8"))?.[1]) /
    1024;
  const before = pids.reduce((sum, pid) => sum + megabytes(pid, "VmRSS"), 0);
  // From now on the peak is counted anew (proc(5), clear_refs).
  for (const pid of pids) writeFileSync(`/proc/${String(pid)}/clear_refs`, "5");
  await run();
  return pids.reduce((sum, pid) => sum + megabytes(pid, "VmHWM"), 0) - before;
}
