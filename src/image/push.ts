import { Readable } from "node:stream";
import { buffer } from "node:stream/consumers";
import type { Image } from "../core/image.ts";
import type { PushDestination } from "../core/reference.ts";
import type { BlobStore } from "./blobs.ts";
import { inLanes } from "./lanes.ts";
import { type ImageManifest, parseManifest } from "./manifest.ts";
import type { PushTarget } from "./push-target.ts";
import type { Registry } from "./registry.ts";
import type { RegistryAuth } from "./registry-auth.ts";
import type { TransferCounts, TransferProgress } from "./transfer.ts";

export interface PushRequest {
  image: Pick<Image, "digest" | "mediaType">;
  destination: PushDestination;
  auth: RegistryAuth | null;
  registry: Registry;
  blobs: BlobStore;
  signal: AbortSignal;
  /** Layer digest → a repository of the same registry that is known to have it; a hint that may be wrong. */
  sources: ReadonlyMap<string, string>;
  onProgress?: (progress: TransferProgress) => void;
}

/**
 * Publishes an image: only the blobs that the repository lacks leave, and last the manifest with its exact bytes, so that
 * the tag never names what is not there. A layer that was mounted counts as skipped.
 * @throws BerthError `registry_denied`, `registry_unreachable`, `registry_error`, `address_refused`; `not_found` when the
 * blob store lacks one of the image's blobs; the signal's reason.
 */
export async function pushImage(request: PushRequest): Promise<TransferCounts> {
  const { image, destination, auth, registry, blobs, signal, sources } = request;
  const bytes = await buffer(await blobs.open(image.digest));
  const manifest = parseManifest(bytes, image.mediaType) as ImageManifest;
  const target = registry.target(destination, auth, [...new Set(sources.values())]);
  // Before the layers, so that wrong credentials are known before much is sent.
  const { digest, size } = manifest.config;
  await target.place({ digest, bytes: size, open: () => blobs.open(digest) }, null, signal);
  const counts = await pushLayers(request, manifest, target);
  const open = (): Readable => Readable.from([bytes]);
  await target.putManifest(
    destination.tag,
    { digest: image.digest, bytes: bytes.length, open },
    manifest.mediaType,
    signal,
  );
  return counts;
}

async function pushLayers(request: PushRequest, manifest: ImageManifest, target: PushTarget): Promise<TransferCounts> {
  const { blobs, sources, onProgress } = request;
  // An image may list a layer (such as the empty one) several times.
  const distinct = [...new Map(manifest.layers.map((layer) => [layer.digest, layer])).values()];
  const progress: TransferProgress = {
    layersDone: 0,
    layersTotal: distinct.length,
    bytesDone: 0,
    bytesTotal: distinct.reduce((sum, { size }) => sum + size, 0),
  };
  const counts = { layersTransferred: 0, layersSkipped: 0, bytesTransferred: 0 };
  await inLanes(distinct, request.signal, async ({ digest, size }, signal) => {
    let sent = 0;
    const counted = async function* (): AsyncGenerator<Uint8Array, void> {
      progress.bytesDone -= sent;
      sent = 0;
      for await (const chunk of (await blobs.open(digest)) as AsyncIterable<Buffer>) {
        sent += chunk.length;
        progress.bytesDone += chunk.length;
        counts.bytesTransferred += chunk.length;
        onProgress?.({ ...progress });
        yield chunk;
      }
    };
    const open = (): Readable => Readable.from(counted(), { objectMode: false });
    const placed = await target.place({ digest, bytes: size, open }, sources.get(digest) ?? null, signal);
    if (placed === "uploaded") counts.layersTransferred++;
    else counts.layersSkipped++;
    progress.bytesDone += size - sent;
    progress.layersDone++;
    onProgress?.({ ...progress });
  });
  return counts;
}
