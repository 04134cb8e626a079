import { Readable } from "node:stream";
import type { StepResult } from "../../core/build-request.ts";
import type { Layer } from "../../core/image.ts";
import { type PushDestination, parsePushDestination, parseReference } from "../../core/reference.ts";
import { writeBuildCache } from "../../image/build-cache.ts";
import { mediaTypes } from "../../image/manifest.ts";
import { pushArtifact } from "../../image/push.ts";
import type { OutgoingBlob } from "../../image/push-target.ts";
import type { TransferCounts } from "../../image/transfer.ts";
import type { ImportedCaches } from "./imported-caches.ts";
import type { BuildMeans } from "./ports.ts";

/**
 * Publishes what a build's steps have made, so that other builds can name it in `cacheFrom`. Layers that the build had no need
 * to fetch go from registry to registry.
 * @throws BerthError as `pushImage`
 */
export async function exportCache(
  results: ReadonlyMap<string, StepResult>,
  imports: ImportedCaches,
  to: string,
  means: Pick<BuildMeans, "blobs" | "registry" | "registryAuth">,
  signal: AbortSignal,
): Promise<TransferCounts> {
  const { blobs, registry, registryAuth } = means;
  const destination = parsePushDestination(to);
  const { manifest, config, configDigest, layers } = writeBuildCache(results);
  const outgoing = (layer: Layer): OutgoingBlob => ({
    digest: layer.digest,
    bytes: layer.sizeBytes,
    open: () => {
      const repository = imports.repositoryOf(layer);
      if (repository === null) return blobs.open(layer.digest);
      const descriptor = { digest: layer.digest, size: layer.sizeBytes, mediaType: layer.mediaType };
      return Readable.from(repository.blob(descriptor, signal), { objectMode: false });
    },
  });
  return pushArtifact(
    {
      destination,
      auth: registryAuth.get(destination.registry) ?? null,
      registry,
      signal,
      sources: neighbours(results, destination),
    },
    {
      manifest,
      mediaType: mediaTypes.ociManifest,
      config: { digest: configDigest, bytes: config.length, open: () => Readable.from([config]) },
      layers: layers.map(outgoing),
    },
  );
}

/** Layers that another repository of the destination's registry has: they are from a cache there. */
function neighbours(
  results: ReadonlyMap<string, StepResult>,
  { registry, repository }: PushDestination,
): Map<string, string> {
  const sources = new Map<string, string>();
  for (const { layer, from } of results.values()) {
    if (layer === null || from === undefined) continue;
    const reference = parseReference(from);
    if (reference.registry === registry && reference.repository !== repository) {
      sources.set(layer.digest, reference.repository);
    }
  }
  return sources;
}
