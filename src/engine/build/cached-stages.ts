import type { BuildPlan } from "../../build/step.ts";
import { unlessAborted } from "../../core/abort.ts";
import type { StepResult } from "../../core/build-request.ts";
import { abortableEntries } from "./abortable.ts";
import { CacheFailure, ImportedCaches } from "./imported-caches.ts";
import type { FileMemory } from "./ports.ts";
import { RemoteTrees } from "./remote-trees.ts";
import { type FinishedStage, runStages } from "./stage-runner.ts";
import type { StepLayers } from "./step-layers.ts";
import { StepResults } from "./step-results.ts";
import type { BuildState } from "./step-runner.ts";

/** The target stage, whose layers are in the blob store once nothing goes on beside, and what is known of all steps that led to it. */
export interface CachedBuild extends FinishedStage {
  results: ReadonlyMap<string, StepResult>;
  imports: ImportedCaches;
}

type SharedState = Omit<BuildState, "stages" | "signal" | "results" | "remotes">;

/**
 * Builds the stages of a plan with the registries' caches that the build names. When one can't give what it promised, the
 * build is done once more without it; what was made on the way is in the project's own cache.
 * @param noCache Do not look for earlier results.
 */
export async function cachedStages(
  plan: BuildPlan,
  state: SharedState,
  { cacheFrom = [], noCache }: { cacheFrom?: readonly string[]; noCache: boolean },
  signal: AbortSignal,
): Promise<CachedBuild> {
  for (let references = cacheFrom; ; ) {
    const built = await builtWith(references, plan, state, noCache, signal);
    if (!(built instanceof CacheFailure)) return built;
    const { reference, message } = built;
    state.report.line(0, "info", `#0 warning: the cache ${reference} is not used any more. ${message}`);
    // What this try has made is found by the next one, which gives its sandboxes the same ids.
    await Promise.all([state.beside.settled(), state.means.leaving.settled()]);
    references = references.filter((other) => other !== reference);
  }
}

async function builtWith(
  cacheFrom: readonly string[],
  plan: BuildPlan,
  state: SharedState,
  noCache: boolean,
  outer: AbortSignal,
): Promise<CachedBuild | CacheFailure> {
  const { means, report } = state;
  report.plan(plan.stages);
  // Also what is on its way for a step that waits is given up when another has failed.
  const abort = new AbortController();
  const signal = AbortSignal.any([outer, abort.signal]);
  const imports = new ImportedCaches(cacheFrom, means, report, signal);
  const results = new StepResults(means.cache, means.blobs, imports, noCache);
  const layers: StepLayers = {
    make: (entries) => means.layers.make(abortableEntries(entries, signal)),
    lowers: async (those) => {
      await imports.obtain(those);
      return unlessAborted(means.layers.lowers(those), signal);
    },
  };
  // Of this try: what another has given up on the way would not come.
  const remotes = new RemoteTrees({ ...means, files: noCache ? unknownFiles(means.files) : means.files });
  try {
    const stage = await runStages(plan, { ...state, means: { ...means, layers }, results, remotes, signal }, abort);
    signal.throwIfAborted();
    await imports.obtain(stage.layers);
    return { ...stage, results: results.used, imports };
  } catch (error) {
    if (error instanceof CacheFailure) return error;
    throw error;
  } finally {
    await remotes.close();
  }
}

/** Files that are downloaded as if for the first time. */
function unknownFiles(files: FileMemory): FileMemory {
  return { find: () => Promise.resolve(null), keep: (url, file) => files.keep(url, file) };
}
