import { z } from "zod";
import type { StepResult } from "../core/build-request.ts";
import type { Layer } from "../core/image.ts";
import {
  type BuildCacheManifest,
  buildCacheType,
  type ListedSteps,
  layerName,
  listedDiffIds,
  listedSteps,
  listSteps,
  parseBuildCache,
  parseBuildCacheManifest,
  resultsOf,
} from "./build-cache.ts";
import { check, invalidImage, parseJson } from "./document.ts";
import type { FetchedManifest, Repository } from "./repository.ts";

/*
 * An image that is its own build cache: its config lists the steps that made its layers, in a field that other programs
 * pass by (OCI image spec v1.1, config.md: unknown fields are ignored).
 */

const field = "berth.buildcache.v1";

/** What an image's config has for it. */
export type InlineCache = Record<typeof field, { steps: ListedSteps }>;

const configDocument = z.looseObject({
  rootfs: z.looseObject({ diff_ids: listedDiffIds }),
  [field]: z.strictObject({ steps: listedSteps }).optional(),
});

/**
 * Lists, of what a build's steps have made, that which is among the image's layers, and what made no layer.
 * @param epoch the time of what has one (seconds since 1970), so that it does not tell when the steps ran; null: it may
 * @throws BerthError `invalid_image` when they are too many
 */
export function writeInlineCache(
  results: ReadonlyMap<string, StepResult>,
  layers: readonly Layer[],
  epoch: number | null,
): InlineCache {
  const places = new Map(layers.map((layer, place) => [layerName(layer), place]));
  const placeOf = (layer: Layer): number => places.get(layerName(layer)) ?? -1;
  const created = epoch === null ? {} : { created: new Date(epoch * 1000).toISOString() };
  const own = [...results]
    .filter(([, { layer }]) => layer === null || placeOf(layer) >= 0)
    .map(([key, result]) => [key, { ...result, ...created }] as const);
  return { [field]: { steps: listSteps(new Map(own), placeOf) } };
}

/** As `parseBuildCache`, from an image. @throws BerthError `invalid_image`, also when it is no cache */
export function parseInlineCache({ layers }: BuildCacheManifest, config: Uint8Array): Map<string, StepResult> {
  const document = check(configDocument, parseJson(config, "config"), "config");
  const listed = document[field];
  if (listed === undefined) throw invalidImage("as a build cache, it does not say which steps made its layers");
  return resultsOf(layers, { diffIds: document.rootfs.diff_ids, steps: listed.steps });
}

/**
 * The results by key that a cache in a registry lists, or an image that is its own.
 * @throws BerthError `invalid_image` when it is neither; as `Repository.document`
 */
export async function readCache(
  repository: Repository,
  manifest: FetchedManifest,
  signal: AbortSignal,
): Promise<Map<string, StepResult>> {
  const listed = parseBuildCacheManifest(manifest.bytes, manifest.mediaType);
  const config = await repository.document(listed.config, signal);
  const parse = listed.config.mediaType === buildCacheType ? parseBuildCache : parseInlineCache;
  return parse(listed, config);
}
