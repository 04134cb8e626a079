import { z } from "zod";
import { BerthError } from "../core/errors.ts";
import type { Image, ImageConfig, Layer } from "../core/image.ts";
import { formatPlatform, type Platform, platformFit } from "../core/platform.ts";
import { digestPattern } from "../core/reference.ts";
import { digestOf } from "./digest.ts";
import { check, invalidImage, maxDocumentBytes, parseJson } from "./document.ts";

/** OCI image spec v1.1 and Docker image manifest v2 schema 2; anything else is not an image that Berth runs. */
export const mediaTypes = {
  ociIndex: "application/vnd.oci.image.index.v1+json",
  ociManifest: "application/vnd.oci.image.manifest.v1+json",
  ociConfig: "application/vnd.oci.image.config.v1+json",
  dockerList: "application/vnd.docker.distribution.manifest.list.v2+json",
  dockerManifest: "application/vnd.docker.distribution.manifest.v2+json",
  dockerConfig: "application/vnd.docker.container.image.v1+json",
} as const;

/** What a client may ask a registry for. */
export const acceptedManifests = [
  mediaTypes.ociIndex,
  mediaTypes.dockerList,
  mediaTypes.ociManifest,
  mediaTypes.dockerManifest,
];

/** Media types of layers that Berth reads. */
export const layerTypes: ReadonlySet<string> = new Set([
  "application/vnd.oci.image.layer.v1.tar",
  "application/vnd.oci.image.layer.v1.tar+gzip",
  "application/vnd.oci.image.layer.v1.tar+zstd",
  "application/vnd.docker.image.rootfs.diff.tar",
  "application/vnd.docker.image.rootfs.diff.tar.gzip",
  "application/vnd.docker.image.rootfs.diff.tar.zstd",
]);

/** Overlayfs takes at most 500 lower layers; Docker allows 127. */
const maxLayers = 127;

/** A content descriptor (OCI descriptor.md): what a blob is, and how its bytes are checked. */
export interface Descriptor {
  mediaType: string;
  digest: string;
  size: number;
}

export interface ImageManifest {
  kind: "image";
  mediaType: string;
  config: Descriptor;
  /** Lowest first. */
  layers: Descriptor[];
}

export interface ImageIndex {
  kind: "index";
  mediaType: string;
  manifests: (Descriptor & { platform?: Platform })[];
}

export const descriptor = z.object({
  mediaType: z.string().max(255),
  digest: z.string().regex(digestPattern),
  size: z.int().min(0),
});
const platform = z.object({ os: z.string(), architecture: z.string(), variant: z.string().optional() });

const manifestDocument = z.object({
  schemaVersion: z.literal(2),
  mediaType: z.string().optional(),
  config: descriptor,
  layers: z.array(descriptor).max(maxLayers),
  manifests: z.undefined().optional(),
});
const indexDocument = z.object({
  schemaVersion: z.literal(2),
  mediaType: z.string().optional(),
  manifests: z.array(descriptor.extend({ platform: platform.optional() })).max(1000),
  config: z.undefined().optional(),
  layers: z.undefined().optional(),
});

const strings = z.array(z.string());
const configDocument = z.looseObject({
  architecture: z.string().min(1),
  os: z.string().min(1),
  variant: z.string().optional(),
  created: z.string().optional(),
  author: z.string().optional(),
  config: z
    .looseObject({
      User: z.string().optional(),
      ExposedPorts: z.record(z.string(), z.object({}).loose()).nullish(),
      Env: strings.nullish(),
      Entrypoint: strings.nullish(),
      Cmd: strings.nullish(),
      Volumes: z.record(z.string(), z.object({}).loose()).nullish(),
      WorkingDir: z.string().optional(),
      Labels: z.record(z.string(), z.string()).nullish(),
      StopSignal: z.string().optional(),
      Shell: strings.nullish(),
    })
    .nullish(),
  rootfs: z.object({
    type: z.literal("layers"),
    diff_ids: z.array(z.string().regex(digestPattern)).max(maxLayers).nullable(),
  }),
  history: z
    .array(
      z.looseObject({
        created: z.string().optional(),
        created_by: z.string().optional(),
        comment: z.string().optional(),
        author: z.string().optional(),
        empty_layer: z.boolean().optional(),
      }),
    )
    .nullish(),
});

/**
 * Parses a manifest or index. Its kind comes from its media type, which the registry's `contentType` and the document's
 * own must agree on, so that one document can't be read in two ways (CVE-2021-41190).
 * @throws BerthError `invalid_image`.
 */
export function parseManifest(bytes: Uint8Array, contentType: string): ImageManifest | ImageIndex {
  const document = parseJson(bytes, "manifest");
  const declared = contentType.split(";", 1)[0]?.trim().toLowerCase() ?? "";
  const own = (document as { mediaType?: unknown }).mediaType;
  if (own !== undefined && own !== declared) {
    throw invalidImage(`its manifest is served as ${JSON.stringify(declared)} and says it is ${JSON.stringify(own)}`);
  }
  if (declared === mediaTypes.ociIndex || declared === mediaTypes.dockerList) {
    return {
      kind: "index",
      mediaType: declared,
      manifests: check(indexDocument, document, "index").manifests as ImageIndex["manifests"],
    };
  }
  if (declared !== mediaTypes.ociManifest && declared !== mediaTypes.dockerManifest) {
    throw invalidImage(`its manifest has the media type ${JSON.stringify(declared)}`);
  }
  const { config, layers } = check(manifestDocument, document, "manifest");
  const configType = declared === mediaTypes.ociManifest ? mediaTypes.ociConfig : mediaTypes.dockerConfig;
  if (config.mediaType !== configType) {
    throw invalidImage(
      `its config has the media type ${JSON.stringify(config.mediaType)}, so it is no container image`,
    );
  }
  if (config.size > maxDocumentBytes) throw invalidImage("its config is larger than 4 MiB");
  for (const layer of layers) {
    if (!layerTypes.has(layer.mediaType)) {
      throw invalidImage(`a layer has the media type ${JSON.stringify(layer.mediaType)}`);
    }
  }
  return { kind: "image", mediaType: declared, config, layers };
}

/** The manifest of an index that fits best; of equals the first. @throws BerthError `image_not_found`, `invalid_image`. */
export function selectManifest(index: ImageIndex, wanted: Platform, name: string): Descriptor {
  let best: { fit: number; manifest: Descriptor } | null = null;
  for (const manifest of index.manifests) {
    const fit = manifest.platform === undefined ? 0 : platformFit(wanted, manifest.platform);
    if (fit > (best?.fit ?? 0)) best = { fit, manifest };
  }
  if (best === null)
    throw noPlatform(
      name,
      wanted,
      index.manifests.flatMap((one) => one.platform ?? []),
    );
  const { mediaType, digest, size } = best.manifest;
  if (mediaType !== mediaTypes.ociManifest && mediaType !== mediaTypes.dockerManifest) {
    throw invalidImage("its index points to something that is not a manifest");
  }
  if (size > maxDocumentBytes) throw invalidImage("its manifest is larger than 4 MiB");
  return { mediaType, digest, size };
}

/** Parses a config; unknown fields stay, nulls that old builders wrote go. @throws BerthError `invalid_image`. */
export function parseConfig(bytes: Uint8Array): ImageConfig {
  const document = check(configDocument, parseJson(bytes, "config"), "config");
  const config = withoutNulls({ ...document, config: withoutNulls(document.config ?? {}) });
  return { ...config, rootfs: { type: "layers", diff_ids: document.rootfs.diff_ids ?? [] } } as ImageConfig;
}

/**
 * The image that a manifest and its config describe.
 * @throws BerthError `image_not_found` when it is made for another platform, `invalid_image` when the two don't agree.
 */
export function joinImage(
  manifest: ImageManifest,
  manifestDigest: string,
  config: ImageConfig,
  wanted: Platform,
  name: string,
): Image {
  checkPlatform(config, wanted, name);
  const diffIds = config.rootfs.diff_ids;
  if (diffIds.length !== manifest.layers.length) {
    throw invalidImage(
      `its manifest has ${String(manifest.layers.length)} layers and its config ${String(diffIds.length)}`,
    );
  }
  const layers = manifest.layers.map(
    ({ digest, size, mediaType }, i): Layer => ({ digest, diffId: diffIds[i] ?? "", sizeBytes: size, mediaType }),
  );
  return { digest: manifestDigest, mediaType: manifest.mediaType, config, layers };
}

/** A new image: its config and manifest as they are stored and pushed. The layers' diff ids replace the config's. */
export function writeImage(
  config: Omit<ImageConfig, "rootfs">,
  layers: readonly Layer[],
): { image: Image; manifest: Uint8Array; config: Uint8Array; configDigest: string } {
  const complete: ImageConfig = {
    ...config,
    rootfs: { type: "layers", diff_ids: layers.map((layer) => layer.diffId) },
  };
  const configBytes = Buffer.from(JSON.stringify(complete));
  const configDigest = digestOf(configBytes);
  const manifestBytes = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: mediaTypes.ociManifest,
      config: { mediaType: mediaTypes.ociConfig, digest: configDigest, size: configBytes.length },
      layers: layers.map((layer) => ({ mediaType: ociLayerType(layer), digest: layer.digest, size: layer.sizeBytes })),
    }),
  );
  const image = {
    digest: digestOf(manifestBytes),
    mediaType: mediaTypes.ociManifest,
    config: complete,
    layers: layers.map((layer) => ({ ...layer, mediaType: ociLayerType(layer) })),
  };
  return { image, manifest: manifestBytes, config: configBytes, configDigest };
}

/** Layers of a Docker base keep their bytes and get OCI's name for them. */
function ociLayerType(layer: Layer): string {
  const suffix = /[.+](gzip|zstd)$/.exec(layer.mediaType)?.[1];
  return `application/vnd.oci.image.layer.v1.tar${suffix === undefined ? "" : `+${suffix}`}`;
}

/** @throws BerthError `image_not_found` when the image is made for another platform */
export function checkPlatform(made: Platform, wanted: Platform, name: string): void {
  if (platformFit(wanted, made) === 0) throw noPlatform(name, wanted, [made]);
}

function noPlatform(name: string, wanted: Platform, has: readonly Platform[]): BerthError {
  const list = [...new Set(has.map(formatPlatform))].slice(0, 20).join(", ");
  const detail = `${name} is not made for ${formatPlatform(wanted)}${list === "" ? "" : `, only for ${list}`}.`;
  return new BerthError("image_not_found", detail);
}

function withoutNulls(record: object): object {
  return Object.fromEntries(Object.entries(record).filter(([, value]) => value !== null && value !== undefined));
}
