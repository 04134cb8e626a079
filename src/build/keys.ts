import { createHash } from "node:crypto";
import type { LayerCompression } from "../core/build-request.ts";
import type { Layer } from "../core/image.ts";
import type { CopyStep, RunStep, WorkdirStep } from "./step.ts";

/** How a build's layers are written. */
export interface LayerForm {
  /** As `BuildPlan.epoch`. */
  epoch: number | null;
  compression: LayerCompression;
}

/** Raised when the same step would make something else than before. */
const keyVersion = 1;

function digest(value: unknown): string {
  return createHash("sha256").update(JSON.stringify(value)).digest("hex");
}

/** Names a root filesystem: the layers' contents in order, whatever made them. */
export function chainKey(layers: readonly Pick<Layer, "diffId">[]): string {
  return digest(layers.map(({ diffId }) => diffId));
}

/** Names what is known of the file behind a URL, which may have a secret in it. */
export function fileKey(url: string): string {
  return digest(["file", url]);
}

/**
 * What a step's result depends on: the filesystem it starts from (`parent`, a chainKey), its own meaning with all
 * variables expanded, and `content`, a digest of all that it reads besides (files of the context, another stage's
 * chain), and the form of the build's layers. ENV, LABEL and the like are no part unless the step sees them; neither are
 * times, secrets and proxies.
 */
export function stepKey(
  parent: string,
  step: RunStep | CopyStep | WorkdirStep,
  content: string,
  { epoch, compression }: LayerForm,
): string {
  // The usual compression is left out, as it was before there was another.
  const unusual = compression === "gzip" ? [] : [compression];
  return digest([keyVersion, epoch, parameters(parent, step, content), ...unusual]);
}

function parameters(parent: string, step: RunStep | CopyStep | WorkdirStep, content: string): unknown[] {
  switch (step.kind) {
    case "run": {
      const { argv, env, cwd, user, network, script } = step;
      const mounts = step.mounts.map((mount) => ("origin" in mount ? { ...mount, origin: null } : mount));
      return ["run", parent, argv, [...env].sort(), cwd, user, network, mounts, script, content];
    }
    case "copy": {
      const {
        sources,
        remotes,
        inline,
        destination,
        intoDirectory,
        chown,
        chmod,
        excludes,
        parents,
        unpack,
        checksum,
      } = step;
      const how = [intoDirectory, chown, chmod, excludes, parents, unpack, checksum];
      // A linked layer is the same over any parent, unless names of its owner are looked up there.
      const below = step.link && !hasNames(chown) ? "" : parent;
      return ["copy", below, step.link, sources, remotes, inline, destination, how, content];
    }
    case "workdir":
      return ["workdir", parent, step.path, step.user];
  }
}

function hasNames(chown: string | null): boolean {
  return chown !== null && !/^\d+(?::\d+)?$/.test(chown);
}
