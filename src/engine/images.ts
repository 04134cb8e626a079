import { unlessAborted } from "../core/abort.ts";
import { BerthError } from "../core/errors.ts";
import type { Image } from "../core/image.ts";
import { type Platform, parsePlatform, platformFit, platformOf } from "../core/platform.ts";
import { formatReference, hubReference, type ImageReference, parseReference } from "../core/reference.ts";
import type { Transaction } from "../db/connect.ts";
import { findImage, hasRepository, projectHasLayer, recordImage } from "../db/image-records.ts";
import { checkPlatform } from "../image/manifest.ts";
import { pullImage } from "../image/pull.ts";
import type { RegistryAuth } from "../image/registry-auth.ts";
import type { TransferCounts, TransferProgress } from "../image/transfer.ts";
import type { Services } from "./services.ts";

/**
 * How to get an image. `signal` aborts the transfer; `held` tells, in the transaction that would record it, whether this
 * worker may still write.
 */
export interface ImageWish {
  pull: "missing" | "always" | "never";
  platform?: string;
  auth?: RegistryAuth;
  signal: AbortSignal;
  held: (tx: Transaction) => Promise<boolean>;
  onProgress?: (progress: TransferProgress) => void;
}

/** An image whose layers are all on this host, and what was moved to get them there. */
export interface HeldImage {
  image: Image;
  moved: TransferCounts;
}

/**
 * The project's image of that reference with all its layers on this host: its own, or one pulled before, or pulled now.
 * A repository that the project has never means Docker Hub's of the same name.
 * @throws BerthError `image_not_found`, or what the registry client throws.
 */
export async function ensureImage(
  services: Services,
  projectId: string,
  text: string,
  wish: ImageWish,
): Promise<HeldImage> {
  const reference = parseReference(text);
  const { db } = services.connection;
  if (reference.registry === null && (await hasRepository(db, projectId, reference.repository))) {
    const own = await findImage(db, projectId, reference);
    if (own === null)
      throw new BerthError("image_not_found", `The project has no image ${formatReference(reference)}.`);
    const wanted = askedPlatform(wish);
    if (wanted !== null) checkPlatform(own.config, wanted, formatReference(reference));
    return { image: own, moved: await ensureLayers(services, own, wish.signal) };
  }
  const remote = hubReference(reference);
  const known = wish.pull === "always" ? null : await findImage(db, projectId, remote);
  if (known !== null && isFor(known, wish)) {
    return { image: known, moved: await ensureLayers(services, known, wish.signal) };
  }
  if (wish.pull === "never") {
    throw new BerthError("image_not_found", `The project has no image ${formatReference(remote)}, and pulling is off.`);
  }
  const { image, ...moved } = await pullAndRecord(services, projectId, remote, wish);
  return { image, moved };
}

/** The platform that is asked for; null: any will do that the project has. */
function askedPlatform({ platform }: Pick<ImageWish, "platform">): Platform | null {
  return platform === undefined ? null : parsePlatform(platform, platformOf(process.arch));
}

/** Whether an image that was pulled before is of the platform asked for. */
function isFor({ config }: Image, wish: Pick<ImageWish, "platform">): boolean {
  const wanted = askedPlatform(wish);
  return wanted === null || platformFit(wanted, config) > 0;
}

/** Pulls what is missing of an image from its registry and records it in the project. */
export async function pullAndRecord(
  services: Services,
  projectId: string,
  reference: ImageReference & { registry: string },
  wish: Omit<ImageWish, "pull">,
): Promise<{ image: Image } & TransferCounts> {
  const { registry, blobs, layers, connection } = services;
  const pulled = await pullImage({
    reference,
    platform: wish.platform ?? null,
    auth: wish.auth ?? null,
    registry,
    blobs,
    layers,
    signal: wish.signal,
    mayReuse: (layer) => projectHasLayer(connection.db, projectId, layer),
    ...(wish.onProgress === undefined ? {} : { onProgress: wish.onProgress }),
  });
  const { image, manifest, layersTransferred, layersSkipped, bytesTransferred } = pulled;
  const sizeBytes = image.layers.reduce((sum, layer) => sum + layer.sizeBytes, 0);
  await connection.db.transaction(async (tx) => {
    if (!(await wish.held(tx))) throw new BerthError("unavailable", "Another worker has taken over.");
    await recordImage(tx, projectId, { ...image, manifest, sizeBytes }, [reference]);
  });
  return { image, layersTransferred, layersSkipped, bytesTransferred };
}

/**
 * Makes sure that every layer of a known image is in this host's cache, from the blob store when it is not; what was moved
 * for it. An image may list a layer (such as the empty one) several times. When the signal aborts, nobody waits any longer;
 * what is on its way goes on, for whoever wants it next.
 */
export async function ensureLayers(
  { layers }: Pick<Services, "layers">,
  image: Image,
  signal: AbortSignal,
): Promise<TransferCounts> {
  const distinct = [...new Map(image.layers.map((layer) => [`${layer.digest} ${layer.diffId}`, layer])).values()];
  const lacking = await Promise.all(distinct.map(async (layer) => ((await layers.has(layer)) ? [] : [layer])));
  const missing = lacking.flat();
  await unlessAborted(Promise.all(missing.map((layer) => layers.ensure(layer))), signal);
  return {
    layersTransferred: missing.length,
    layersSkipped: distinct.length - missing.length,
    bytesTransferred: missing.reduce((sum, layer) => sum + layer.sizeBytes, 0),
  };
}
