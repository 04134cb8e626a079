import type { StepResult } from "../core/build-request.ts";
import type { ImageConfig, Layer } from "../core/image.ts";
import type { StagePlan } from "./step.ts";

type History = NonNullable<ImageConfig["history"]>;

/** A stage's history so far: of the image or stage it builds on, then one entry a step that leaves a trace. */
export function stageHistory(stage: StagePlan, base: History, results: ReadonlyMap<number, StepResult>): History {
  const own = stage.steps.flatMap(({ index, createdBy }) => {
    if (createdBy === null) return [];
    const result = results.get(index);
    const empty = (result?.layer ?? null) === null ? { empty_layer: true } : {};
    return [
      {
        ...(result === undefined ? {} : { created: result.created }),
        created_by: createdBy,
        comment: "berth",
        ...empty,
      },
    ];
  });
  return [...base, ...own];
}

/** The config of the image that a stage makes (OCI image spec v1.1, config.md). */
export function finishedConfig(
  stage: StagePlan,
  base: ImageConfig | undefined,
  layers: readonly Layer[],
  history: History,
  created: string,
): ImageConfig {
  const { os, architecture, variant } = stage.platform;
  return {
    architecture: base?.architecture ?? architecture,
    os: base?.os ?? os,
    ...((base?.variant ?? variant) === undefined ? {} : { variant: base?.variant ?? variant ?? "" }),
    created,
    ...(stage.author === undefined ? {} : { author: stage.author }),
    config: stage.config,
    rootfs: { type: "layers", diff_ids: layers.map(({ diffId }) => diffId) },
    history,
  };
}
