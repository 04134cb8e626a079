import { BerthError } from "../core/errors.ts";
import type { ImageConfig } from "../core/image.ts";
import { applyPolicy, everyCheck, parseCheckPolicy } from "./check-policy.ts";
import type { Dockerfile } from "./dockerfile.ts";
import { buildEpoch, withEpoch } from "./epoch.ts";
import { type Graph, type NeededImage, resolveGraph, targetStage } from "./graph.ts";
import type { PlanOptions } from "./options.ts";
import { planStage, type StageEnd } from "./plan-stage.ts";
import { platformArgs } from "./platform-args.ts";
import { builtInArgs, globalScope, proxyNames, type Scope } from "./scope.ts";
import { quoted } from "./source.ts";
import type { BuildPlan, StagePlan } from "./step.ts";
import type { Warning } from "./warning.ts";

/** The build argument that stands in for a `check` directive. */
const checkArg = "BUILDKIT_DOCKERFILE_CHECK";

/**
 * The images that the target reads and `known` lacks. An image may carry triggers that read further ones, so ask until
 * none is missing; `known` is by `NeededImage.key`.
 */
export function missingImages(
  dockerfile: Dockerfile,
  options: PlanOptions,
  known: ReadonlyMap<string, ImageConfig>,
): NeededImage[] {
  const { images } = resolveGraph(dockerfile, global(dockerfile, options, []), options, known);
  return [...images.values()].filter(({ key }) => !known.has(key));
}

/**
 * Plans a build: the stages that the target needs, in order, with every variable expanded.
 * @throws BerthError `invalid_dockerfile` (with the line), or `invalid_request` for a target that does not exist.
 */
export function planBuild(
  dockerfile: Dockerfile,
  asked: PlanOptions,
  images: ReadonlyMap<string, ImageConfig>,
): BuildPlan {
  const warnings: Warning[] = [...dockerfile.warnings];
  const epoch = buildEpoch(dockerfile, global(dockerfile, asked, []), asked);
  const options = withEpoch(asked, epoch);
  const globals = global(dockerfile, options, warnings);
  const graph = resolveGraph(dockerfile, globals, options, images);
  const ends = new Map<number, StageEnd>();
  const stages: StagePlan[] = [];
  let index = 1;
  for (const resolved of graph.stages) {
    const { plan, end } = planStage(resolved, index, { dockerfile, options, globals, images, ends, warnings });
    ends.set(plan.number, end);
    stages.push(plan);
    index += plan.steps.length;
  }
  const last = stages.find((stage) => stage.number === graph.target);
  if (last !== undefined && Object.keys(options.labels).length > 0) {
    last.config = { ...last.config, Labels: { ...last.config.Labels, ...options.labels } };
  }
  warnings.push(...checkDefaults(dockerfile, options, graph), ...unusedArgs(dockerfile, options));
  return {
    stages,
    target: graph.target,
    images: [...graph.images.keys()],
    epoch,
    warnings: heeded(dockerfile, options, warnings),
  };
}

/** The warnings about the Dockerfile itself (a base's triggers are not its author's) that its checks let through. */
function heeded(
  { source, directives, skips }: Dockerfile,
  options: PlanOptions,
  warnings: readonly Warning[],
): Warning[] {
  const given = Object.hasOwn(options.args, checkArg) ? options.args[checkArg] : undefined;
  const start = { source, line: 1, column: 1 };
  const policy = given === undefined ? (directives.check ?? everyCheck) : parseCheckPolicy(given, start);
  return applyPolicy(
    warnings.filter(({ at }) => at.source === source),
    policy,
    skips,
  );
}

/** A FROM that names nothing unless an argument is given. */
function checkDefaults(dockerfile: Dockerfile, options: PlanOptions, graph: Graph): Warning[] {
  try {
    const defaults = global(dockerfile, { ...options, args: {} }, []);
    return graph.stages.flatMap(({ stage: { from } }) => {
      if (defaults.word(from.base, from.at) !== "") return [];
      const message = `without a build argument the base ${quoted(from.base)} is empty`;
      return [{ check: "InvalidDefaultArgInFrom", message, at: from.at }];
    });
  } catch (error) {
    // `${x:?…}`: without the argument there is no build at all, which is what its author wants.
    if (error instanceof BerthError) return [];
    throw error;
  }
}

function global(dockerfile: Dockerfile, options: PlanOptions, warnings: Warning[]): Scope {
  const stage = targetStage(dockerfile, options.target);
  const predefined = platformArgs(options.buildPlatform, options.platform, stage.name ?? options.target ?? "default");
  return globalScope(dockerfile.globalArgs, options.args, predefined, dockerfile.escape, warnings);
}

function unusedArgs(dockerfile: Dockerfile, options: PlanOptions): Warning[] {
  const declared = new Set([
    ...dockerfile.globalArgs.flatMap(({ args }) => args.map(({ name }) => name)),
    ...dockerfile.stages.flatMap(({ instructions }) =>
      instructions.flatMap((one) => (one.kind === "arg" ? one.args.map(({ name }) => name) : [])),
    ),
  ]);
  return Object.keys(options.args)
    .filter((name) => !declared.has(name) && !proxyNames.has(name) && !builtInArgs.test(name))
    .map((name) => ({
      check: "UnusedBuildArg",
      message: `no ARG declares the build argument ${name.slice(0, 80)}`,
      at: { source: dockerfile.source, line: 1, column: 1 },
    }));
}
