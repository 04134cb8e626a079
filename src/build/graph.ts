import { BerthError } from "../core/errors.ts";
import type { ImageConfig } from "../core/image.ts";
import type { NamedContext } from "../core/named-context.ts";
import { formatPlatform, type Platform, parsePlatform } from "../core/platform.ts";
import { type Dockerfile, parseTrigger, type Stage } from "./dockerfile.ts";
import type { StageInstruction } from "./instruction.ts";
import { mountFrom } from "./mount.ts";
import type { PlanOptions } from "./options.ts";
import type { CopyOrigin } from "./origin.ts";
import type { Scope } from "./scope.ts";
import { dockerfileError, type Location, quoted } from "./source.ts";
import type { StageBase } from "./step.ts";
import { didYouMean } from "./suggest.ts";

/** An image that a build reads. `key` names it within the build: the reference and the platform. */
export interface NeededImage {
  key: string;
  reference: string;
  platform: Platform;
  at: Location;
}

/** A stage with all that its plan depends on: which base, which instructions (the base's triggers first). */
export interface ResolvedStage {
  stage: Stage;
  base: StageBase;
  platform: Platform;
  instructions: StageInstruction[];
  dependsOn: number[];
}

export interface Graph {
  /** The stages that the target needs, each after those it depends on. */
  stages: ResolvedStage[];
  target: number;
  images: Map<string, NeededImage>;
}

export function imageKey(reference: string, platform: Platform): string {
  return `${reference} ${formatPlatform(platform)}`;
}

/** The stage that is built: by name, by number, or the last one. @throws BerthError `invalid_request`. */
export function targetStage(dockerfile: Dockerfile, target: string | undefined): Stage {
  const { stages } = dockerfile;
  const found =
    target === undefined || target === ""
      ? stages.at(-1)
      : (stages.findLast((stage) => stage.name === target.toLowerCase()) ??
        (/^\d{1,4}$/.test(target) ? stages[Number(target)] : undefined));
  if (found !== undefined) return found;
  const names = stages.flatMap((stage) => stage.name ?? []);
  throw new BerthError(
    "invalid_request",
    `The Dockerfile has no stage ${quoted(target ?? "")}${didYouMean(target ?? "", names) || "."}`,
  );
}

/**
 * Finds the stages and images that the target needs. A stage reads earlier stages only, so there are no cycles and
 * the order of the numbers is an order to build in. Triggers of images that `images` lacks are not known yet: ask again
 * when they are.
 */
export function resolveGraph(
  dockerfile: Dockerfile,
  global: Scope,
  options: Pick<PlanOptions, "target" | "platform" | "buildPlatform" | "contexts">,
  images: ReadonlyMap<string, ImageConfig>,
): Graph {
  const target = targetStage(dockerfile, options.target).number;
  const needed = new Map<string, NeededImage>();
  const reachable = new Set([target]);
  const resolved: ResolvedStage[] = [];
  for (let number = target; number >= 0; number--) {
    const stage = dockerfile.stages[number];
    if (stage === undefined || !reachable.has(number)) continue;
    const platform = stagePlatform(stage, global, options.platform, options.buildPlatform);
    const need = (reference: string, at: Location): string => {
      const key = imageKey(reference, platform);
      if (!needed.has(key)) needed.set(key, { key, reference, platform, at });
      return key;
    };
    const base = stageBase(dockerfile, stage, global, options.contexts, need);
    const instructions = [...triggers(dockerfile, base, images), ...stage.instructions];
    const dependsOn = new Set(base.kind === "stage" ? [base.stage] : []);
    for (const instruction of instructions) {
      for (const { from, at } of reads(instruction)) {
        const origin = copyOrigin(dockerfile, number, from, at, options.contexts, (text) => need(text, at));
        if (origin.kind === "stage") dependsOn.add(origin.stage);
      }
    }
    for (const other of dependsOn) reachable.add(other);
    resolved.push({ stage, base, platform, instructions, dependsOn: [...dependsOn].sort((a, b) => a - b) });
  }
  return { stages: resolved.reverse(), target, images: needed };
}

/**
 * What `--from` means in the stage `number`: a named context, the last earlier stage of that name, a number, or an image.
 */
export function copyOrigin(
  dockerfile: Dockerfile,
  number: number,
  from: string,
  at: Location,
  contexts: PlanOptions["contexts"],
  need: (reference: string) => string,
): CopyOrigin {
  if (from.includes("$")) {
    throw dockerfileError(at, "--from is not expanded; give the image a stage of its own: FROM $IMAGE AS name.");
  }
  const named = namedContext(contexts, from);
  if (named?.kind === "image") return { kind: "image", key: need(named.reference) };
  if (named !== undefined) return { kind: "files", source: named };
  const same = (stage: Stage): boolean => stage.name === from.toLowerCase() || String(stage.number) === from;
  const earlier = dockerfile.stages.slice(0, number).findLast(same);
  if (earlier !== undefined) return { kind: "stage", stage: earlier.number };
  if (dockerfile.stages.some(same)) {
    throw dockerfileError(at, `the stage ${quoted(from)} must stand before the stage that reads it.`);
  }
  if (/^\d+$/.test(from)) throw dockerfileError(at, `there is no stage number ${from.slice(0, 20)}.`);
  return { kind: "image", key: need(from) };
}

function namedContext(contexts: PlanOptions["contexts"], name: string): NamedContext | undefined {
  const key = name.toLowerCase();
  return Object.hasOwn(contexts, key) ? contexts[key] : undefined;
}

function stageBase(
  dockerfile: Dockerfile,
  stage: Stage,
  global: Scope,
  contexts: PlanOptions["contexts"],
  need: (reference: string, at: Location) => string,
): StageBase {
  const { at } = stage.from;
  const name = global.word(stage.from.base, at);
  if (name === "")
    throw dockerfileError(at, `the base ${quoted(stage.from.base)} is empty; an ARG before the first FROM can set it.`);
  const named = namedContext(contexts, name);
  if (named?.kind === "image") return { kind: "image", key: need(named.reference, at) };
  if (named !== undefined) {
    throw dockerfileError(at, `the named context ${quoted(name)} has files to copy, and is no image to build on.`);
  }
  const earlier = dockerfile.stages.slice(0, stage.number).findLast((other) => other.name === name.toLowerCase());
  if (earlier !== undefined) return { kind: "stage", stage: earlier.number };
  return name === "scratch" ? { kind: "scratch" } : { kind: "image", key: need(name, at) };
}

function stagePlatform(stage: Stage, global: Scope, target: Platform, build: Platform): Platform {
  const { platform, at } = stage.from;
  if (platform === null) return target;
  const text = global.word(platform, at);
  const parsed = parsePlatform(text, build);
  if (parsed === null) throw dockerfileError(at, `${quoted(text)} is no platform; one is linux/amd64 or linux/arm/v7.`);
  return parsed;
}

function triggers(
  dockerfile: Dockerfile,
  base: StageBase,
  images: ReadonlyMap<string, ImageConfig>,
): StageInstruction[] {
  if (base.kind === "image") {
    const reference = base.key.split(" ")[0] ?? "";
    return (images.get(base.key)?.config?.OnBuild ?? []).map((trigger) => parseTrigger(trigger, reference));
  }
  if (base.kind === "scratch") return [];
  const stage = dockerfile.stages[base.stage];
  return (stage?.instructions ?? []).flatMap((instruction) =>
    instruction.kind === "onbuild" ? parseTrigger(instruction.trigger, stage?.name ?? String(base.stage)) : [],
  );
}

function reads(instruction: StageInstruction): { from: string; at: Location }[] {
  if (instruction.kind === "copy" && instruction.from !== null) return [{ from: instruction.from, at: instruction.at }];
  if (instruction.kind !== "run") return [];
  return instruction.mounts.flatMap(({ text, at }) => {
    const from = mountFrom(text);
    return from === null ? [] : [{ from, at }];
  });
}
