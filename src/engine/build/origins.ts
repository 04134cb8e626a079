import type { CopyOrigin } from "../../build/origin.ts";
import type { Image, Layer } from "../../core/image.ts";
import type { ContextTree } from "./context-tree.ts";
import { emptyRoot } from "./empty-root.ts";
import type { FileTree } from "./file-entry.ts";
import type { BuildMeans } from "./ports.ts";
import type { RemoteTrees } from "./remote-trees.ts";

/** What COPY and mounts can take files from, at one moment of a build. */
export interface Origins {
  means: Pick<BuildMeans, "layers" | "withRoot">;
  context: ContextTree;
  images: ReadonlyMap<string, Image>;
  /** Layers of the finished stages, by number. */
  stages: ReadonlyMap<number, readonly Layer[]>;
  remotes: RemoteTrees;
  signal: AbortSignal;
}

/** An origin that is made of layers. */
export type LayeredOrigin = CopyOrigin & { kind: "stage" | "image" };

export function isLayered(origin: CopyOrigin): origin is LayeredOrigin {
  return origin.kind === "stage" || origin.kind === "image";
}

export function originLayers(origins: Pick<Origins, "images" | "stages">, origin: LayeredOrigin): readonly Layer[] {
  const layers = origin.kind === "stage" ? origins.stages.get(origin.stage) : origins.images.get(origin.key)?.layers;
  if (layers === undefined) throw new Error("a step reads a stage or image that is not there yet");
  return layers;
}

/** Lends `use` the tree of an origin. */
export async function withOrigin<T>(
  origins: Origins,
  origin: CopyOrigin,
  use: (tree: FileTree) => Promise<T>,
): Promise<T> {
  if (isLayered(origin)) return withLayers(origins.means, originLayers(origins, origin), use);
  if (origin.kind === "context") return use(origins.context);
  return use(await origins.remotes.tree(origin.source, null, origins.signal));
}

/** Lends `use` the root that layers make. */
export async function withLayers<T>(
  means: Pick<BuildMeans, "layers" | "withRoot">,
  layers: readonly Layer[],
  use: (root: FileTree) => Promise<T>,
): Promise<T> {
  if (layers.length === 0) return use(emptyRoot);
  return means.withRoot(await means.layers.lowers(layers), use);
}
