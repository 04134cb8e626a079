import { Readable } from "node:stream";
import { buffer } from "node:stream/consumers";
import type { Image } from "../core/image.ts";
import type { PushDestination } from "../core/reference.ts";
import type { BlobStore } from "./blobs.ts";
import { digestOf } from "./digest.ts";
import { inLanes } from "./lanes.ts";
import { type Descriptor, type ImageManifest, parseManifest } from "./manifest.ts";
import type { OutgoingBlob, PushTarget } from "./push-target.ts";
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

/** What a tag of a registry is to name: a manifest, its config, and the layers that it lists. */
export interface Artifact {
  /** Its exact bytes. */
  manifest: Uint8Array;
  mediaType: string;
  config: OutgoingBlob;
  layers: readonly OutgoingBlob[];
}

/**
 * Publishes an image: only the blobs that the repository lacks leave, and last the manifest with its exact bytes, so that
 * the tag never names what is not there. A layer that was mounted counts as skipped.
 * @throws BerthError `registry_denied`, `registry_unreachable`, `registry_error`, `address_refused`; `not_found` when the
 * blob store lacks one of the image's blobs; the signal's reason.
 */
export async function pushImage(request: PushRequest): Promise<TransferCounts> {
  const { image, blobs } = request;
  const manifest = await buffer(await blobs.open(image.digest));
  const { config, layers, mediaType } = parseManifest(manifest, image.mediaType) as ImageManifest;
  const stored = ({ digest, size }: Descriptor): OutgoingBlob => ({
    digest,
    bytes: size,
    open: () => blobs.open(digest),
  });
  return pushArtifact(request, { manifest, mediaType, config: stored(config), layers: layers.map(stored) });
}

/** Publishes what is not an image of the blob store's; see `pushImage`. */
export async function pushArtifact(
  request: Pick<PushRequest, "destination" | "auth" | "registry" | "signal" | "sources" | "onProgress">,
  { manifest, mediaType, config, layers }: Artifact,
): Promise<TransferCounts> {
  const { destination, auth, registry, signal, sources } = request;
  const target = registry.target(destination, auth, [...new Set(sources.values())]);
  // Before the layers, so that wrong credentials are known before much is sent.
  await target.place(config, null, signal);
  const counts = await pushLayers(request, layers, target);
  const open = (): Readable => Readable.from([manifest]);
  await target.putManifest(
    destination.tag,
    { digest: digestOf(manifest), bytes: manifest.length, open },
    mediaType,
    signal,
  );
  return counts;
}

async function pushLayers(
  { sources, signal: outer, onProgress }: Pick<PushRequest, "sources" | "signal" | "onProgress">,
  layers: readonly OutgoingBlob[],
  target: PushTarget,
): Promise<TransferCounts> {
  // An image may list a layer (such as the empty one) several times.
  const distinct = [...new Map(layers.map((layer) => [layer.digest, layer])).values()];
  const progress: TransferProgress = {
    layersDone: 0,
    layersTotal: distinct.length,
    bytesDone: 0,
    bytesTotal: distinct.reduce((sum, { bytes }) => sum + bytes, 0),
  };
  const counts = { layersTransferred: 0, layersSkipped: 0, bytesTransferred: 0 };
  await inLanes(distinct, outer, async ({ digest, bytes, open }, signal) => {
    let sent = 0;
    const counted = async function* (): AsyncGenerator<Uint8Array, void> {
      progress.bytesDone -= sent;
      sent = 0;
      for await (const chunk of (await open()) as AsyncIterable<Buffer>) {
        sent += chunk.length;
        progress.bytesDone += chunk.length;
        counts.bytesTransferred += chunk.length;
        onProgress?.({ ...progress });
        yield chunk;
      }
    };
    const counting = (): Readable => Readable.from(counted(), { objectMode: false });
    const placed = await target.place({ digest, bytes, open: counting }, sources.get(digest) ?? null, signal);
    if (placed === "uploaded") counts.layersTransferred++;
    else counts.layersSkipped++;
    progress.bytesDone += bytes - sent;
    progress.layersDone++;
    onProgress?.({ ...progress });
  });
  return counts;
}
