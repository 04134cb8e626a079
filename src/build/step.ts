import type { ImageProcess } from "../core/image.ts";
import type { Platform } from "../core/platform.ts";
import type { Mount } from "./mount.ts";
import type { CopyOrigin } from "./origin.ts";
import type { RemoteSource } from "./remote-source.ts";
import type { Location } from "./source.ts";
import type { Warning } from "./warning.ts";

interface StepBase {
  /** From 1, over all stages of the plan. */
  index: number;
  stage: string;
  /** The instruction in one line, as written. */
  instruction: string;
  at: Location;
  /** `created_by` of the image's history; null: it leaves no trace there. */
  createdBy: string | null;
}

/** Fetches or chooses the root filesystem that a stage begins with. */
export interface FromStep extends StepBase {
  kind: "from";
}

/** Runs a program in a sandbox over the stage's layers; what it changes becomes a layer. */
export interface RunStep extends StepBase {
  kind: "run";
  argv: string[];
  /** `NAME=value`: the image's environment and the ARGs so far. */
  env: string[];
  /** Proxy settings: in the environment, but no reason to run the step again. */
  proxyEnv: string[];
  cwd: string;
  user: string;
  network: "default" | "none";
  mounts: Mount[];
  /** A heredoc with `#!`: an executable file at `path` while the step runs. */
  script: { path: string; content: string } | null;
}

/** Makes a layer of files from the context, a stage, an image, inline content or a URL. */
export interface CopyStep extends StepBase {
  kind: "copy";
  origin: CopyOrigin;
  /** Patterns below the origin's root, cleaned, with the leading slash. */
  sources: string[];
  remotes: RemoteSource[];
  inline: { name: string; content: string }[];
  /** Absolute. */
  destination: string;
  /** The destination was written as a directory, or several sources need one. */
  intoDirectory: boolean;
  /** `user[:group]`, names or numbers; null: as the origin has it, root for the context. */
  chown: string | null;
  chmod: string | null;
  excludes: string[];
  /** Keep the sources' parent directories. */
  parents: boolean;
  /** The layer does not depend on the layers below: the destination's symlinks are not followed. */
  link: boolean;
  /** Unpack files of the origin that are archives. */
  unpack: boolean;
  /** Of the one remote source: `sha256:…` of a file, or how the commit of a repository begins. */
  checksum: string | null;
}

/** Makes the directory unless the image has it. */
export interface WorkdirStep extends StepBase {
  kind: "workdir";
  path: string;
  user: string;
}

/** Changes the image's config only. */
export interface MetaStep extends StepBase {
  kind: "meta";
}

export type Step = FromStep | RunStep | CopyStep | WorkdirStep | MetaStep;

/** What a step has beyond its place in the plan. */
export type StepBody<S extends Step = Step> = S extends Step
  ? Omit<S, "index" | "stage" | "instruction" | "at">
  : never;

export type StageBase = { kind: "scratch" } | { kind: "image"; key: string } | { kind: "stage"; stage: number };

/** One stage that the target needs, all variables expanded. */
export interface StagePlan {
  number: number;
  /** The stage's name, or `stage-2`. */
  name: string;
  base: StageBase;
  platform: Platform;
  /** Numbers of the stages that must be finished before. */
  dependsOn: number[];
  steps: Step[];
  /** The config of an image made of this stage. */
  config: ImageProcess;
  author: string | undefined;
}

export interface BuildPlan {
  /** In an order in which they can be built. */
  stages: StagePlan[];
  /** Number of the stage whose image is the result. */
  target: number;
  /** Keys of all images that are read (`imageKey`). */
  images: string[];
  /** The time that image and files get, in seconds since 1970; null: as time goes. */
  epoch: number | null;
  warnings: Warning[];
}
