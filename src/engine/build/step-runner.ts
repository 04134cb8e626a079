import { chainKey, type LayerForm, stepKey } from "../../build/keys.ts";
import { isKernelPath } from "../../build/paths.ts";
import type { CopyStep, RunStep, WorkdirStep } from "../../build/step.ts";
import { resolveIn } from "../../build/tree.ts";
import type { StepResult } from "../../core/build-request.ts";
import { BerthError } from "../../core/errors.ts";
import { commitPattern } from "../../core/git-source.ts";
import type { Layer } from "../../core/image.ts";
import { type LayerEntry, toByteString } from "../../image/layer-entry.ts";
import type { MadeLayer } from "../../image/layers.ts";
import type { Turns } from "../../image/turns.ts";
import { resolveOwner } from "./accounts.ts";
import type { Beside } from "./beside.ts";
import { copiedContent } from "./copied-content.ts";
import { copyLayer } from "./copy-layer.ts";
import { type CopySource, originSource } from "./copy-source.ts";
import { hostDecompress } from "./decompress-program.ts";
import { Destination } from "./destination.ts";
import { atStep } from "./errors.ts";
import type { FileTree } from "./file-entry.ts";
import { mountedContents } from "./mounted-content.ts";
import { type StepMounts, withMounts } from "./mounts.ts";
import { isLayered, type Origins, originLayers, withLayers, withOrigin } from "./origins.ts";
import type { BuildIdentity, BuildMeans } from "./ports.ts";
import type { BuildReport } from "./report.ts";
import { runStep } from "./run-step.ts";
import type { StepResults } from "./step-results.ts";

/** Everything that steps of one build share. */
export interface BuildState extends Origins {
  means: BuildMeans;
  build: BuildIdentity;
  report: BuildReport;
  results: StepResults;
  /** That the layers of `means` have. */
  form: LayerForm;
  /** Bounds how many programs run at once. */
  running: Turns;
  beside: Beside;
}

export type LayerStep = RunStep | CopyStep | WorkdirStep;

/** What the step makes over `below`: from the cache when it has been done, otherwise now. */
export async function layerOf(
  state: BuildState,
  step: LayerStep,
  below: readonly Layer[],
): Promise<StepResult & { cached: boolean }> {
  const { results } = state;
  const keep = (key: string, result: StepResult): void => {
    const kept = results.keep(key, result).catch((error: unknown) => {
      // The steps that go on meanwhile are not to blame.
      throw atStep(error, step);
    });
    state.beside.add(kept);
  };
  const keys: string[] = [];
  for (const content of contentsOf(state, step)) {
    state.means.sandboxes.holdOff();
    const key = stepKey(chainKey(below), step, await content(), state.form);
    const known = await results.find(key);
    if (known !== null) {
      for (const other of keys) keep(other, { ...known, keys: [other, key] });
      return { ...known, cached: true };
    }
    keys.push(key);
  }
  state.means.sandboxes.holdOff();
  const created = new Date().toISOString();
  const made = await perform(state, step, below);
  const result = { layer: made?.layer ?? null, created, ...(keys.length > 1 ? { keys } : {}) };
  results.note(keys, result, made);
  for (const key of keys) keep(key, result);
  return { ...result, cached: false };
}

/**
 * Digests of what the step reads besides the root that it starts from, the cheapest first: that nothing at all changed
 * where it copies from; then that what it takes from there is the same.
 */
function contentsOf(state: BuildState, step: LayerStep): (() => Promise<string>)[] {
  if (step.kind === "run") return mountedContents(state, step.mounts);
  if (step.kind === "workdir") return [() => Promise.resolve("")];
  const whole = () => withSources(state, step, (sources) => copiedContent(sources, step, state.signal));
  const { origin } = step;
  if (isLayered(origin)) return [() => Promise.resolve(chainKey(originLayers(state, origin))), whole];
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
  const { context, remotes, signal } = state;
  const { origin } = step;
  if (origin.kind !== "context") return withOrigin(state, origin, (tree) => use([originSource(step, tree)]));
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

async function perform(state: BuildState, step: LayerStep, below: readonly Layer[]): Promise<MadeLayer | null> {
  const { means } = state;
  switch (step.kind) {
    case "run":
      return runAhead(state, step, below);
    case "workdir":
      return withLayers(means, below, async (root) => {
        const entries = await workdirEntries(step, root);
        return entries === null ? null : means.layers.make(entries);
      });
    case "copy":
      return withLayers(means, below, (root) =>
        withSources(state, step, (sources) =>
          means.layers.make(copyLayer(step, sources, root, hostDecompress(means.sandboxes))),
        ),
      );
  }
}

/** Runs the step and returns what it made; its sandbox and mounts are taken away later, with caches before the build ends. */
function runAhead(state: BuildState, step: RunStep, below: readonly Layer[]): Promise<MadeLayer | null> {
  const { means, build, report, signal } = state;
  const { leaving } = means;
  const hasCaches = step.mounts.some(({ type }) => type === "cache");
  const made = Promise.withResolvers<MadeLayer | null>();
  const run = async (mounts: StepMounts): Promise<void> => {
    await runStep(step, below, mounts, means, build, report, signal, async (layer) => {
      const turn = leaving.add(whole);
      // The next build is to find them free. That they could not be taken away fails no build.
      if (hasCaches) state.beside.add(whole.catch(() => undefined));
      made.resolve(layer);
      // Secrets and caches are given back at once.
      if (step.mounts.length === 0) await turn;
    });
  };
  const work = async (): Promise<void> => {
    // Caches are free again when the sandboxes that had them are gone.
    await (hasCaches ? leaving.settled() : leaving.begin());
    await withMounts(state, step, below, run);
  };
  let whole = Promise.resolve();
  return state.running.take(() => {
    whole = work();
    // Until then it is the step that has failed, which knows its line.
    whole.catch(made.reject);
    return made.promise;
  });
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
