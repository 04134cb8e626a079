import { type ChildProcess, spawn } from "node:child_process";
import { chmodSync, mkdirSync, mkdtempSync, readdirSync, readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { gunzipSync } from "node:zlib";
import type { LayerEntry } from "../../src/image/layer-entry.ts";
import { writeTar } from "../../src/image/tar-write.ts";
import { ensureMountNamespace } from "../../src/isolation/apply/host.ts";
import type { BuildAnswer, BuildOrder } from "./build-worker.ts";
import { collect, entry } from "./image.ts";
import { Owned } from "./ownership.ts";

/** A build worker in a process and mount namespace of its own. */
export interface BuildWorker {
  /** Builds from files: path → content, `path/` a directory, or whole entries. */
  build(
    tag: string,
    dockerfile: readonly string[],
    files?: Record<string, string | Buffer> | LayerEntry[],
    more?: Pick<BuildOrder, "cancelAt" | "outboundAllow" | "carelessly" | "secrets" | "project"> &
      BuildOrder["request"],
  ): Promise<BuildAnswer>;
  /** Blobs and layers of the worker that have this text in them, compressed or not. */
  find(text: string): string[];
  /** Names of what the instance has in the kernel and in its run directory besides what is prepared ahead. */
  leftovers(): string[];
  stop(): Promise<void>;
}

export async function startBuildWorker(): Promise<BuildWorker> {
  const instance = Math.floor(Math.random() * 0xffffff)
    .toString(16)
    .padStart(6, "0");
  const dataDir = mkdtempSync(join(tmpdir(), "berth-build-test-"));
  chmodSync(dataDir, 0o711);
  const runDir = `/run/berth/${instance}`;
  const owned = Owned.record({ directory: dataDir, sandboxes: { instance, runDir, dataDir, runtime: null } });
  for (const name of ["blobs", "worker/builds"]) mkdirSync(`${dataDir}/${name}`, { recursive: true, mode: 0o711 });
  const prefix = await ensureMountNamespace({ runDir });
  const script = join(import.meta.dirname, "build-worker.ts");
  const [program, ...args] = [...prefix, process.execPath, script, dataDir, runDir, instance];
  const child = spawn(program, args, { stdio: ["pipe", "pipe", "inherit"] });
  const answers = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  return {
    async build(
      tag,
      dockerfile,
      files = {},
      { cancelAt, outboundAllow, carelessly, secrets, project, ...request } = {},
    ) {
      const entries = Array.isArray(files)
        ? files
        : Object.entries(files).map(([path, content]) =>
            path.endsWith("/")
              ? entry(path, { type: "directory" })
              : entry(path, { content, mode: typeof content === "string" ? 0o644 : 0o755 }),
          );
      const all = [entry("Dockerfile", { content: `${dockerfile.join("\n")}\n` }), ...entries];
      const tar = (await collect(writeTar(all))).toString("base64");
      const order: BuildOrder = {
        tar,
        request,
        tag,
        ...(outboundAllow === undefined ? {} : { outboundAllow }),
        ...(cancelAt === undefined ? {} : { cancelAt }),
        ...(carelessly === undefined ? {} : { carelessly }),
        ...(secrets === undefined ? {} : { secrets }),
        ...(project === undefined ? {} : { project }),
      };
      child.stdin.write(`${JSON.stringify(order)}\n`);
      const answer = await answers.next();
      if (answer.done === true) throw new Error("the build worker has ended");
      return JSON.parse(answer.value) as BuildAnswer;
    },
    find: (text) =>
      ["blobs", "worker/layers"].flatMap((directory) =>
        readdirSync(`${dataDir}/${directory}`, { recursive: true, withFileTypes: true })
          .filter((file) => file.isFile() && plain(readFileSync(join(file.parentPath, file.name))).includes(text))
          .map(({ name }) => name),
      ),
    leftovers: () => [...readdirSync(`${runDir}/containers`), ...readdirSync(`${dataDir}/worker/builds`)],
    async stop() {
      child.stdin.end();
      await ended(child);
      await owned.remove();
    },
  };
}

function plain(bytes: Buffer): Buffer {
  return bytes[0] === 0x1f && bytes[1] === 0x8b ? gunzipSync(bytes) : bytes;
}

function ended(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return Promise.resolve();
  return new Promise((resolve) => child.once("exit", () => resolve()));
}

/** Debian's busybox-static: one program, no libraries. */
export const busybox = (): Buffer => readFileSync("/bin/busybox");
