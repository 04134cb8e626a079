import { finishedConfig, stageHistory } from "../../build/finished-image.ts";
import type { BuildPlan, StagePlan } from "../../build/step.ts";
import type { StepResult } from "../../core/build-request.ts";
import type { ImageConfig, Layer } from "../../core/image.ts";
import { atStep } from "./errors.ts";
import { type BuildState, layerOf } from "./step-runner.ts";

/** A stage that has been built. */
export interface FinishedStage {
  layers: readonly Layer[];
  config: ImageConfig;
}

/**
 * Builds the stages of a plan: each as soon as those it reads are done, independent ones side by side. When one fails
 * the others are stopped by `abort`, which the state's signal is to follow, and nothing of them runs on when this returns.
 */
export async function runStages(
  plan: BuildPlan,
  state: Omit<BuildState, "stages">,
  abort: AbortController,
): Promise<FinishedStage> {
  const layers = new Map<number, readonly Layer[]>();
  const shared: BuildState = { ...state, stages: layers };
  const running = new Map<number, Promise<FinishedStage>>();
  for (const stage of plan.stages) {
    const before = stage.dependsOn.flatMap((number) => running.get(number) ?? []);
    const done = (async () => {
      await Promise.all(before);
      const base = stage.base.kind === "stage" ? await running.get(stage.base.stage) : undefined;
      const finished = await runStage(stage, base, shared);
      layers.set(stage.number, finished.layers);
      return finished;
    })();
    done.catch((error: unknown) => abort.abort(error));
    running.set(stage.number, done);
  }
  await Promise.allSettled(running.values());
  // The first failure, not what it made the others end with.
  if (abort.signal.aborted) throw abort.signal.reason;
  const target = await running.get(plan.target);
  if (target === undefined) throw new Error("the plan lacks its target");
  return target;
}

async function runStage(stage: StagePlan, base: FinishedStage | undefined, state: BuildState): Promise<FinishedStage> {
  const image = stage.base.kind === "image" ? state.images.get(stage.base.key) : undefined;
  const baseConfig = base?.config ?? image?.config;
  const layers = [...(base?.layers ?? image?.layers ?? [])];
  const results = new Map<number, StepResult>();
  // An instruction that makes no layer is as old as what it stands on: an unchanged build gives the same image.
  const { epoch } = state.form;
  const dated = epoch === null ? undefined : new Date(epoch * 1000).toISOString();
  let created = dated ?? baseConfig?.created ?? new Date(0).toISOString();
  for (const [position, step] of stage.steps.entries()) {
    state.signal.throwIfAborted();
    state.report.begin(step.index, `[${stage.name} ${position + 1}/${stage.steps.length}] ${step.instruction}`);
    try {
      const result =
        step.kind === "from" || step.kind === "meta"
          ? { layer: null, created, cached: false }
          : await layerOf(state, step, layers);
      created = dated ?? result.created;
      if (result.layer !== null) layers.push(result.layer);
      results.set(step.index, { ...result, created });
      state.report.end(step.index, { status: "succeeded", cached: result.cached });
    } catch (error) {
      state.report.end(step.index, { status: state.signal.aborted ? "cancelled" : "failed" });
      throw atStep(error, step);
    }
  }
  const history = stageHistory(stage, baseConfig?.history ?? [], results);
  return { layers, config: finishedConfig(stage, baseConfig, layers, history, created) };
}
