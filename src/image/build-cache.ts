import { z } from "zod";
import type { StepResult } from "../core/build-request.ts";
import type { BerthError } from "../core/errors.ts";
import type { Layer } from "../core/image.ts";
import { digestPattern } from "../core/reference.ts";
import { digestOf } from "./digest.ts";
import { check, invalidImage, parseJson } from "./document.ts";
import { type Descriptor, descriptor, layerTypes, mediaTypes } from "./manifest.ts";

/*
 * A build cache in a registry is an OCI image manifest (OCI image spec v1.1, "Guidance for Artifact Usage") whose layers are
 * those that steps of a build made, and whose config lists the steps: keys → layer. Steps of another version have other keys.
 */

/** The media type of a build cache's config. */
export const buildCacheType = "application/vnd.berth.buildcache.v1+json";

/**
 * What a cache may have; a step's result may be found in two ways. A document of that size is read in 30 ms, in which the
 * worker does nothing else.
 */
const limits = { layers: 2_000, steps: 4_000, keys: 2, documentBytes: 2 ** 20 };

const manifestDocument = z.object({
  schemaVersion: z.literal(2),
  mediaType: z.literal(mediaTypes.ociManifest).optional(),
  config: descriptor,
  layers: z.array(descriptor).max(limits.layers),
  manifests: z.undefined().optional(),
});

/** The diff ids of a manifest's layers, in its order. */
export const listedDiffIds = z.array(z.string().regex(digestPattern)).max(limits.layers);

/** Steps as they are listed. */
export const listedSteps = z
  .array(
    z.strictObject({
      keys: z
        .array(z.string().regex(/^[0-9a-f]{64}$/))
        .min(1)
        .max(limits.keys),
      /** Its place among the layers; null: the step changed nothing. */
      layer: z.int().min(0).nullable(),
      created: z.iso.datetime(),
    }),
  )
  .max(limits.steps);
export type ListedSteps = z.infer<typeof listedSteps>;

const configDocument = z.strictObject({ diffIds: listedDiffIds, steps: listedSteps });

/** What a cache's manifest names: the list of steps, and layers. */
export interface BuildCacheManifest {
  config: Descriptor;
  layers: Descriptor[];
}

function tooLarge(what: string): BerthError {
  return invalidImage(`as a build cache, its ${what} is larger than 1 MiB`);
}

/** A cache as it is pushed. The same results give the same bytes. @throws BerthError `invalid_image` when it would be too large. */
export function writeBuildCache(results: ReadonlyMap<string, StepResult>): {
  manifest: Uint8Array;
  config: Uint8Array;
  configDigest: string;
  layers: Layer[];
  /** How many are listed. */
  steps: number;
} {
  const layers: Layer[] = [];
  const places = new Map<string, number>();
  const placeOf = (layer: Layer): number => {
    const name = layerName(layer);
    const place = places.get(name) ?? layers.push(layer) - 1;
    places.set(name, place);
    return place;
  };
  const steps = listSteps(results, placeOf);
  if (layers.length > limits.layers) throw tooMany();
  const config = Buffer.from(JSON.stringify({ diffIds: layers.map(({ diffId }) => diffId), steps }));
  const configDigest = digestOf(config);
  const manifest = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: mediaTypes.ociManifest,
      config: { mediaType: buildCacheType, digest: configDigest, size: config.length },
      layers: layers.map(({ mediaType, digest, sizeBytes }) => ({ mediaType, digest, size: sizeBytes })),
    }),
  );
  return { manifest, config, configDigest, layers, steps: steps.length };
}

const tooMany = () =>
  invalidImage(`a build cache has at most ${String(limits.layers)} layers and ${String(limits.steps)} steps`);

/** The results as a list. The same ones are the same list. @throws BerthError `invalid_image` when they are too many. */
export function listSteps(results: ReadonlyMap<string, StepResult>, placeOf: (layer: Layer) => number): ListedSteps {
  const groups = new Map<string, StepResult & { keys: string[] }>();
  for (const [key, result] of results) {
    const keys = (result.keys ?? [key]).toSorted();
    groups.set(keys.join(" "), { ...result, keys });
  }
  if (groups.size > limits.steps) throw tooMany();
  return [...groups]
    .sort(([one], [other]) => (one < other ? -1 : 1))
    .map(([, { keys, layer, created }]) => ({ keys, layer: layer === null ? null : placeOf(layer), created }));
}

/** Names a layer by its claims, which need not be true of one blob. */
export function layerName({ digest, diffId }: Pick<Layer, "digest" | "diffId">): string {
  return `${digest} ${diffId}`;
}

/** @throws BerthError `invalid_image` when it is anything but the manifest of a build cache, or of an image that may have one. */
export function parseBuildCacheManifest(bytes: Uint8Array, contentType: string): BuildCacheManifest {
  const declared = contentType.split(";", 1)[0]?.trim().toLowerCase() ?? "";
  if (declared !== mediaTypes.ociManifest) {
    throw invalidImage(`its manifest has the media type ${JSON.stringify(declared)}, so it is no build cache`);
  }
  if (bytes.length > limits.documentBytes) throw tooLarge("manifest");
  const { config, layers } = check(manifestDocument, parseJson(bytes, "manifest"), "manifest");
  if (config.mediaType !== buildCacheType && config.mediaType !== mediaTypes.ociConfig) {
    throw invalidImage(
      `its config has the media type ${JSON.stringify(config.mediaType)}, so it is no build cache of Berth's`,
    );
  }
  if (config.size > limits.documentBytes) throw tooLarge("config");
  for (const { mediaType } of layers) {
    if (!layerTypes.has(mediaType)) throw invalidImage(`a layer has the media type ${JSON.stringify(mediaType)}`);
  }
  return { config, layers };
}

/** The results by key; nothing of them has been checked against the layers' bytes. @throws BerthError `invalid_image`. */
export function parseBuildCache({ layers }: BuildCacheManifest, config: Uint8Array): Map<string, StepResult> {
  return resultsOf(layers, check(configDocument, parseJson(config, "config"), "config"));
}

/** What a list of steps says of a manifest's layers. @throws BerthError `invalid_image` when the two don't agree */
export function resultsOf(
  layers: readonly Descriptor[],
  { diffIds, steps }: { diffIds: readonly string[]; steps: ListedSteps },
): Map<string, StepResult> {
  if (diffIds.length !== layers.length) {
    throw invalidImage(`its manifest has ${String(layers.length)} layers and its config ${String(diffIds.length)}`);
  }
  const layerAt = (place: number): Layer => {
    const found = layers[place];
    if (found === undefined) throw invalidImage("a step has a layer that its manifest lacks");
    const { digest, size, mediaType } = found;
    return { digest, diffId: diffIds[place] ?? "", sizeBytes: size, mediaType };
  };
  return new Map(
    steps.flatMap(({ keys, layer, created }) => {
      const result = { layer: layer === null ? null : layerAt(layer), created, keys };
      return keys.map((key) => [key, result] as const);
    }),
  );
}
