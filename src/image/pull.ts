import { BerthError } from "../core/errors.ts";
import type { Image, Layer } from "../core/image.ts";
import { type Platform, parsePlatform, platformOf } from "../core/platform.ts";
import { formatReference, type ImageReference } from "../core/reference.ts";
import type { BlobStore } from "./blobs.ts";
import { inLanes } from "./lanes.ts";
import type { LayerStore } from "./layers.ts";
import { type ImageManifest, joinImage, parseConfig, parseManifest, selectManifest } from "./manifest.ts";
import type { Registry } from "./registry.ts";
import type { RegistryAuth } from "./registry-auth.ts";
import type { FetchedManifest, Repository } from "./repository.ts";
import type { TransferCounts, TransferProgress } from "./transfer.ts";

export interface PullRequest {
  reference: ImageReference & { registry: string };
  /** Such as `linux/arm64`; null: this host's. */
  platform: string | null;
  auth: RegistryAuth | null;
  registry: Registry;
  blobs: BlobStore;
  layers: Pick<LayerStore, "obtain" | "import">;
  signal: AbortSignal;
  /**
   * Whether a layer that the blob store has may be used without being transferred. A digest is no proof that who names it may
   * read the blob, so this should say yes only to what the project has already. Absent: every layer may be.
   */
  mayReuse?: (layer: Layer) => boolean | Promise<boolean>;
  onProgress?: (progress: TransferProgress) => void;
}

export interface PulledImage extends TransferCounts {
  image: Image;
  /** The image's manifest as JSON; its exact bytes are in the blob store under `image.digest`. */
  manifest: Record<string, unknown>;
}

/**
 * Brings an image from a registry into the blob store and the host's layers, only what is missing of it. An index gives the
 * manifest of the platform. Nothing that fails a check is stored; layers that were complete when another failed stay.
 * @throws BerthError `image_not_found`, `registry_denied`, `registry_unreachable`, `registry_error`, `address_refused`,
 * `digest_mismatch`, `invalid_image`, `layer_too_large`, `disk_full`; the signal's reason.
 */
export async function pullImage(request: PullRequest): Promise<PulledImage> {
  const { registry, reference, auth, blobs, signal } = request;
  const name = formatReference(reference);
  const host = platformOf(process.arch);
  const wanted = request.platform === null ? host : parsePlatform(request.platform, host);
  if (wanted === null) throw new BerthError("invalid_request", `${JSON.stringify(request.platform)} is no platform.`);
  const { repository, manifest: found } = await registry.resolve(reference, auth, signal);
  const { fetched, manifest } = await imageManifest(repository, found, wanted, name, signal);
  const configBytes = await repository.document(manifest.config, signal);
  const image = joinImage(manifest, fetched.digest, parseConfig(configBytes), wanted, name);
  const counts = await pullLayers(request, repository, image.layers);
  // Last, so that whoever finds the manifest's blob finds all that it names.
  await blobs.put([configBytes], { digest: manifest.config.digest, maxBytes: configBytes.length });
  await blobs.put([fetched.bytes], { digest: fetched.digest, maxBytes: fetched.bytes.length });
  return { image, manifest: JSON.parse(fetched.bytes.toString("utf8")) as Record<string, unknown>, ...counts };
}

async function imageManifest(
  repository: Repository,
  found: FetchedManifest,
  wanted: Platform,
  name: string,
  signal: AbortSignal,
): Promise<{ fetched: FetchedManifest; manifest: ImageManifest }> {
  const parsed = parseManifest(found.bytes, found.mediaType);
  if (parsed.kind === "image") return { fetched: found, manifest: parsed };
  const { digest, mediaType } = selectManifest(parsed, wanted, name);
  const fetched = await repository.manifest(digest, signal);
  // What the index says it is, so that an index can't lead to another.
  return { fetched, manifest: parseManifest(fetched.bytes, mediaType) as ImageManifest };
}

async function pullLayers(
  request: PullRequest,
  repository: Repository,
  all: readonly Layer[],
): Promise<TransferCounts> {
  const { onProgress } = request;
  // An image may list a layer (such as the empty one) several times.
  const distinct = [...new Map(all.map((layer) => [`${layer.digest} ${layer.diffId}`, layer])).values()];
  const progress: TransferProgress = {
    layersDone: 0,
    layersTotal: distinct.length,
    bytesDone: 0,
    bytesTotal: distinct.reduce((sum, layer) => sum + layer.sizeBytes, 0),
  };
  const counts = { layersTransferred: 0, layersSkipped: 0, bytesTransferred: 0 };
  await inLanes(distinct, request.signal, async (layer, signal) => {
    const moved = await pullLayer({ ...request, repository, signal }, layer, (bytes) => {
      counts.bytesTransferred += bytes;
      progress.bytesDone += bytes;
      onProgress?.({ ...progress });
    });
    if (moved) counts.layersTransferred++;
    else {
      counts.layersSkipped++;
      progress.bytesDone += layer.sizeBytes;
    }
    progress.layersDone++;
    onProgress?.({ ...progress });
  });
  return counts;
}

/**
 * Brings one layer from a repository into the blob store and the host's layers; size, digest and diff id are checked. False:
 * it was there, and may be used.
 * @throws BerthError as `pullImage` does; the signal's reason.
 */
export async function pullLayer(
  from: Pick<PullRequest, "layers" | "mayReuse" | "signal"> & { repository: Repository },
  layer: Layer,
  onBytes: (count: number) => void = () => undefined,
): Promise<boolean> {
  const { repository, layers, mayReuse, signal } = from;
  if (((await mayReuse?.(layer)) ?? true) && (await layers.obtain(layer))) return false;
  const descriptor = { digest: layer.digest, size: layer.sizeBytes, mediaType: layer.mediaType };
  const counted = async function* (): AsyncGenerator<Uint8Array, void> {
    for await (const chunk of repository.blob(descriptor, signal)) {
      onBytes(chunk.length);
      yield chunk;
    }
  };
  await layers.import(counted, layer);
  return true;
}
