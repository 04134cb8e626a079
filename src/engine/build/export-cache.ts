import { Readable } from "node:stream";
import type { StepResult } from "../../core/build-request.ts";
import { BerthError } from "../../core/errors.ts";
import type { Layer } from "../../core/image.ts";
import { type ShownError, shownError } from "../../core/job.ts";
import { type PushDestination, parsePushDestination, parseReference } from "../../core/reference.ts";
import { writeBuildCache } from "../../image/build-cache.ts";
import { mediaTypes } from "../../image/manifest.ts";
import { pushArtifact } from "../../image/push.ts";
import type { OutgoingBlob } from "../../image/push-target.ts";
import type { TransferCounts } from "../../image/transfer.ts";
import type { CachedBuild } from "./cached-stages.ts";
import type { ImportedCaches } from "./imported-caches.ts";
import type { BuildMeans } from "./ports.ts";
import type { BuildReport } from "./report.ts";

type ExportMeans = Pick<BuildMeans, "blobs" | "registry" | "registryAuth">;

/** What an export has listed, and what it moved; or why there is none. */
export type CacheExport = (TransferCounts & { steps: number }) | { error: ShownError };

/**
 * Publishes what a build's steps have made, so that other builds can name it in `cacheFrom`. That it fails is said in the log, and
 * takes nothing from the image.
 * @throws the signal's reason
 */
export async function exportCache(
  to: string,
  { results, imports }: CachedBuild,
  means: ExportMeans,
  report: BuildReport,
  signal: AbortSignal,
): Promise<CacheExport> {
  try {
    const pushed = await pushCache(to, results, imports, means, signal);
    const layers = `${pushed.layersTransferred} layers (${pushed.bytesTransferred} bytes) sent`;
    report.line(
      0,
      "info",
      `#0 cache: ${pushed.steps} steps are at ${to}, ${layers}, ${pushed.layersSkipped} were there`,
    );
    return pushed;
  } catch (error) {
    signal.throwIfAborted();
    if (!(error instanceof BerthError)) throw error;
    report.line(0, "info", `#0 warning: the cache is not exported to ${to}. ${error.message}`);
    return { error: shownError(error) };
  }
}

/** Layers that the build had no need to fetch go from registry to registry. */
async function pushCache(
  to: string,
  results: ReadonlyMap<string, StepResult>,
  imports: ImportedCaches,
  means: ExportMeans,
  signal: AbortSignal,
): Promise<TransferCounts & { steps: number }> {
  const { blobs, registry, registryAuth } = means;
  const destination = parsePushDestination(to);
  const { manifest, config, configDigest, layers, steps } = writeBuildCache(results);
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
  const counts = await pushArtifact(
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
  return { steps, ...counts };
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
