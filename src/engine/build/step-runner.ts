import { chainKey, stepKey } from "../../build/keys.ts";
import { isKernelPath } from "../../build/paths.ts";
import type { CopyStep, RunStep, WorkdirStep } from "../../build/step.ts";
import { resolveIn } from "../../build/tree.ts";
import type { StepResult } from "../../core/build-request.ts";
import { BerthError } from "../../core/errors.ts";
import { commitPattern } from "../../core/git-source.ts";
import type { Image, Layer } from "../../core/image.ts";
import { type LayerEntry, toByteString } from "../../image/layer-entry.ts";
import type { Turns } from "../../image/turns.ts";
import { resolveOwner } from "./accounts.ts";
import type { ContextTree } from "./context-tree.ts";
import { copiedContent } from "./copied-content.ts";
import { copyLayer } from "./copy-layer.ts";
import { type CopySource, originSource } from "./copy-source.ts";
import { hostDecompress } from "./decompress-program.ts";
import { Destination } from "./destination.ts";
import type { FileTree } from "./file-entry.ts";
import type { BuildIdentity, BuildMeans } from "./ports.ts";
import type { RemoteTrees } from "./remote-trees.ts";
import type { BuildReport } from "./report.ts";
import { emptyRoot } from "./root-view.ts";
import { runStep } from "./run-step.ts";

/** Everything that steps of one build share. */
export interface BuildState {
  means: BuildMeans;
  build: BuildIdentity;
  report: BuildReport;
  signal: AbortSignal;
  context: ContextTree;
  images: ReadonlyMap<string, Image>;
  remotes: RemoteTrees;
  /** Layers of the finished stages, by number. */
  stages: ReadonlyMap<number, readonly Layer[]>;
  /** Do not look for earlier results; those of this build are kept all the same. */
  noCache: boolean;
  /** As `BuildPlan.epoch`; the layers of `means` have it. */
  epoch: number | null;
  /** Bounds how many programs run at once. */
  running: Turns;
}

export type LayerStep = RunStep | CopyStep | WorkdirStep;

/** What the step makes over `below`: from the cache when it has been done, otherwise now. */
export async function layerOf(
  state: BuildState,
  step: LayerStep,
  below: readonly Layer[],
): Promise<StepResult & { cached: boolean }> {
  const { cache } = state.means;
  const keys: string[] = [];
  for (const content of contentsOf(state, step)) {
    const key = stepKey(chainKey(below), step, await content(), state.epoch);
    const known = state.noCache ? null : await usable(state, key);
    if (known !== null) {
      for (const other of keys) await cache.keep(other, known);
      return { ...known, cached: true };
    }
    keys.push(key);
  }
  const result = { layer: await perform(state, step, below), created: new Date().toISOString() };
  for (const key of keys) await cache.keep(key, result);
  return { ...result, cached: false };
}

/** A result of before; one whose blob has been collected is as good as none. */
async function usable(state: BuildState, key: string): Promise<StepResult | null> {
  const { cache, blobs } = state.means;
  const known = await cache.find(key);
  if (known === null || known.layer === null) return known;
  return (await blobs.size(known.layer.digest)) === null ? null : known;
}

/**
 * Digests of what the step reads besides the root that it starts from, the cheapest first: that nothing at all changed
 * where it copies from; then that what it takes from there is the same.
 */
function contentsOf(state: BuildState, step: LayerStep): (() => Promise<string>)[] {
  if (step.kind !== "copy") return [() => Promise.resolve("")];
  const whole = () => withSources(state, step, (sources) => copiedContent(sources, step));
  const { origin } = step;
  if (origin.kind === "stage" || origin.kind === "image") {
    return [() => Promise.resolve(chainKey(originLayers(state, origin))), whole];
  }
  const pinned = pinnedContent(step);
  return pinned === null ? [whole] : [() => Promise.resolve(pinned), whole];
}

/** What the one remote source must turn out to be, which it need not be fetched for; null: who knows. */
function pinnedContent({ sources, remotes: [remote, ...more], checksum }: CopyStep): string | null {
  if (remote === undefined || more.length > 0 || sources.length > 0) return null;
  if (remote.kind === "http") return checksum;
  return [checksum, remote.ref].find((text) => text !== null && commitPattern.test(text)) ?? null;
}

/** Lends `use` the trees that a COPY or ADD takes from. */
async function withSources<T>(
  state: BuildState,
  step: CopyStep,
  use: (sources: readonly CopySource[]) => Promise<T>,
): Promise<T> {
  const { means, context, remotes, signal } = state;
  const { origin } = step;
  if (origin.kind === "stage" || origin.kind === "image") {
    return withLayers(means, originLayers(state, origin), (root) => use([originSource(step, root)]));
  }
  if (origin.kind === "files") return use([originSource(step, await remotes.tree(origin.source, null, signal))]);
  const elsewhere = await Promise.all(
    step.remotes.map(async (remote) => ({
      tree: await remotes.tree(remote, step.checksum, signal),
      // A file is alone in its tree; of a repository everything is meant.
      patterns: [remote.kind === "http" ? "/*" : "/"],
      unpack: remote.kind === "http" && remote.unpack,
    })),
  );
  return use([originSource(step, context), ...elsewhere]);
}

function originLayers(state: BuildState, origin: CopyStep["origin"] & { kind: "stage" | "image" }): readonly Layer[] {
  const layers = origin.kind === "stage" ? state.stages.get(origin.stage) : state.images.get(origin.key)?.layers;
  if (layers === undefined) throw new Error("a step reads a stage or image that is not there yet");
  return layers;
}

async function perform(state: BuildState, step: LayerStep, below: readonly Layer[]): Promise<Layer | null> {
  const { means, build, report, signal } = state;
  switch (step.kind) {
    case "run":
      return state.running.take(() => runStep(step, below, means, build, report, signal));
    case "workdir":
      return withLayers(means, below, async (root) => {
        const entries = await workdirEntries(step, root);
        return entries === null ? null : means.layers.create(entries);
      });
    case "copy":
      return withLayers(means, below, (root) =>
        withSources(state, step, (sources) =>
          means.layers.create(copyLayer(step, sources, root, hostDecompress(means.sandboxes))),
        ),
      );
  }
}

async function withLayers<T>(
  means: BuildMeans,
  layers: readonly Layer[],
  use: (root: FileTree) => Promise<T>,
): Promise<T> {
  if (layers.length === 0) return use(emptyRoot);
  return means.withRoot(await means.layers.lowers(layers), use);
}

/** The directory of a WORKDIR when the root does not have it; null: it has. */
async function workdirEntries(step: WorkdirStep, root: FileTree): Promise<AsyncIterable<LayerEntry> | null> {
  const { path, entry, blocked } = await resolveIn(root, toByteString(step.path));
  if (blocked || (entry !== null && entry.type !== "directory")) {
    throw new BerthError("invalid_context", `WORKDIR ${JSON.stringify(step.path)} is no directory in the image.`);
  }
  if (isKernelPath(path)) {
    throw new BerthError(
      "invalid_dockerfile",
      `WORKDIR ${JSON.stringify(step.path)} leads to ${path}, which is the kernel's.`,
    );
  }
  if (entry !== null) return null;
  const owner = step.user === "" ? { uid: 0, gid: 0 } : await resolveOwner(step.user, root);
  return new Destination(root, { ...owner, mtime: { seconds: 0, nanoseconds: 0 } }).directories(path);
}
