import { mkdir, rm } from "node:fs/promises";
import type { RunStep } from "../../build/step.ts";
import { BerthError } from "../../core/errors.ts";
import type { Layer } from "../../core/image.ts";
import { type LayerEntry, noContent, noXattrs, toByteString } from "../../image/layer-entry.ts";
import type { MadeLayer } from "../../image/layers.ts";
import { readUpper } from "../../image/upper.ts";
import { readLog } from "../../isolation/container-log.ts";
import type { Sandboxes } from "../../isolation/sandbox.ts";
import type { SandboxTemplate } from "../../isolation/sandbox-spec.ts";
import type { StepMounts } from "./mounts.ts";
import type { BuildIdentity } from "./ports.ts";
import type { BuildReport } from "./report.ts";
import type { StepLayers } from "./step-layers.ts";

/** Processes and bytes on disk that one step may have; cores and memory are the build's. */
const pids = 2048;
const disk = 10 * 2 ** 30;

/** Of a failed step's output its error shows this much. */
const shownLines = 20;
const shownLength = 500;
const maxLineLength = 16_384;

/** Shorter lines of a secret would hide what only looks like them. */
const shortestHidden = 6;

/**
 * Runs a RUN step in a sandbox over the layers. `made` is called with what it changed as a layer, or null when it is
 * nothing, and awaited before the sandbox is removed, which can take as long as the step.
 * @throws BerthError `step_failed` with `exitCode` and the last lines; the signal's reason when it aborts: the process
 *   is killed then, and nothing of it is left.
 */
export async function runStep(
  step: RunStep,
  layers: readonly Layer[],
  { mounts, top, env }: StepMounts,
  means: { layers: StepLayers; sandboxes: Sandboxes; scratch: string; secrets: ReadonlyMap<string, string> },
  build: BuildIdentity,
  report: BuildReport,
  signal: AbortSignal,
  made: (layer: MadeLayer | null) => Promise<void>,
): Promise<void> {
  const { sandboxes } = means;
  const below = step.script === null ? layers : [...layers, await scriptLayer(means.layers, step.script)];
  const lowers = await means.layers.lowers(below);
  const paths = top === null ? lowers : [...lowers, top];
  signal.throwIfAborted();
  const id = `${build.buildId}-${step.index}`;
  const template: SandboxTemplate = {
    projectId: build.projectId,
    layers: paths,
    process: {
      args: step.argv,
      env: [...step.env, ...step.proxyEnv, ...env],
      cwd: step.cwd,
      user: step.user,
      tty: false,
      stdin: false,
    },
    hostname: "build",
    limits: { ...build.limits, pids, disk },
    readOnlyRootfs: false,
    profile: "build",
    capabilities: { add: [], drop: [] },
    network: step.network === "none" ? "none" : "project",
    mounts,
  };
  const logDir = `${means.scratch}/${id}`;
  const log = `${logDir}/log`;
  await mkdir(logDir, { recursive: true, mode: 0o711 });
  const slot = sandboxes.takeSlot(template);
  const exit = new AbortController();
  const unsubscribe = sandboxes.onExit((exited) => {
    if (exited === id) exit.abort();
  });
  const kill = (): void => {
    sandboxes.signal(id, 9);
  };
  try {
    await sandboxes.start({ ...template, id, slot, log });
    signal.addEventListener("abort", kill);
    // Aborted while it started, or ended before anybody listened.
    if (signal.aborted) kill();
    if (sandboxes.probe(id).state !== "running") exit.abort();
    const last = await followLog(log, step.index, report, hider(step, means.secrets), exit.signal);
    signal.throwIfAborted();
    const end = sandboxes.probe(id);
    if (end.state !== "exited" || end.exitCode !== 0) throw failure(step, end, last);
    await made(await layerOf(readUpper(sandboxes.upperOf(id), sandboxes.idBaseOf(slot)), means.layers));
  } finally {
    signal.removeEventListener("abort", kill);
    unsubscribe();
    await sandboxes.remove(id, slot);
    sandboxes.freeSlot(slot);
    await rm(logDir, { recursive: true, force: true });
  }
}

/** What a step has changed as a layer; null: nothing. */
async function layerOf(changes: AsyncGenerator<LayerEntry>, layers: StepLayers): Promise<MadeLayer | null> {
  try {
    const entries = await someOrNone(changes);
    return entries === null ? null : await layers.make(entries);
  } finally {
    // Given up half-way it has the disk open still, which could not be unmounted then.
    await changes.return(undefined);
  }
}

/** Passes the step's output on until it has ended; returns the last lines. A line may come in several parts. */
async function followLog(
  path: string,
  step: number,
  report: BuildReport,
  hide: (line: string) => string,
  exit: AbortSignal,
): Promise<string[]> {
  const last: string[] = [];
  const open = { stdout: "", stderr: "" };
  const take = async (stream: "stdout" | "stderr", line: string): Promise<void> => {
    open[stream] = "";
    const text = hide(line);
    report.line(step, stream, text);
    last.push(text.slice(0, shownLength));
    if (last.length > shownLines) last.shift();
    await report.ready();
  };
  const follow = { ended: () => Promise.resolve(exit.aborted), signal: exit };
  for await (const { stream, text, partial } of readLog(path, { stdout: true, stderr: true }, follow)) {
    open[stream] += text;
    if (!partial || open[stream].length > maxLineLength) await take(stream, open[stream]);
  }
  for (const stream of ["stdout", "stderr"] as const) if (open[stream] !== "") await take(stream, open[stream]);
  return last;
}

/** Of what a step may print of its secrets the log shows `***`: whole lines of them of some length, found literally. */
function hider(step: RunStep, secrets: ReadonlyMap<string, string>): (line: string) => string {
  const ids = step.mounts.flatMap((mount) => (mount.type === "secret" ? [mount.id] : []));
  const lines = ids
    .flatMap((id) => (secrets.get(id) ?? "").split("\n"))
    .filter((line) => line.length >= shortestHidden);
  return (line) => lines.reduce((shown, secret) => shown.replaceAll(secret, "***"), line);
}

function failure(step: RunStep, end: ReturnType<Sandboxes["probe"]>, last: readonly string[]): BerthError {
  const shown = last.length === 0 ? "" : `\n${last.join("\n")}`;
  const command = step.instruction.slice(0, 200);
  if (end.state !== "exited" || end.exitCode === null) {
    return new BerthError("monitor_lost", `The end of \`${command}\` is not known: its monitor is gone.${shown}`);
  }
  const how = end.oomKilled ? "ran out of memory" : `ended with exit code ${end.exitCode}`;
  return new BerthError("step_failed", `\`${command}\` ${how}.${shown}`, { facts: { exitCode: end.exitCode } });
}

/** The script of a heredoc as a layer of its own: it is there while the step runs, and in no image. */
async function scriptLayer(layers: StepLayers, script: NonNullable<RunStep["script"]>): Promise<Layer> {
  const bytes = Buffer.from(script.content);
  const path = toByteString(script.path.slice(1));
  const common = { uid: 0, gid: 0, mtime: { seconds: 0, nanoseconds: 0 }, target: "", xattrs: noXattrs };
  const directory = path.slice(0, path.lastIndexOf("/") + 1);
  const { layer, stored } = await layers.make([
    { ...common, path: directory, type: "directory", mode: 0o755, size: 0, content: noContent },
    { ...common, path, type: "file", mode: 0o755, size: bytes.length, content: [bytes] },
  ] satisfies LayerEntry[]);
  await stored;
  return layer;
}

/** The entries, or null when there are none. */
async function someOrNone(entries: AsyncIterable<LayerEntry>): Promise<AsyncIterable<LayerEntry> | null> {
  const iterator = entries[Symbol.asyncIterator]();
  const first = await iterator.next();
  if (first.done === true) return null;
  return (async function* () {
    yield first.value;
    yield* { [Symbol.asyncIterator]: () => iterator };
  })();
}
