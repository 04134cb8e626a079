import { z } from "zod";
import { BerthError } from "../core/errors.ts";
import type { Image } from "../core/image.ts";
import type { Platform } from "../core/platform.ts";
import { type ArchivedFile, ArchiveFiles } from "./archive-files.ts";
import type { BlobStore } from "./blobs.ts";
import { digestOf } from "./digest.ts";
import { check, parseJson } from "./document.ts";
import {
  type Descriptor,
  descriptor,
  type ImageManifest,
  joinImage,
  mediaTypes,
  parseConfig,
  parseManifest,
  selectManifest,
} from "./manifest.ts";

/** An image of an archive, whose blobs are in the store. */
export interface ArchivedImage {
  image: Image;
  manifest: Record<string, unknown>;
  /** Of all its blobs. */
  digests: string[];
  /** As the archive has them. */
  names: string[];
}

const names = z.array(z.string().max(512)).max(100);
/** `manifest.json` of Docker Engine's `docker save`. */
const savedImages = z
  .array(
    z.object({
      Config: z.string().max(4096),
      RepoTags: names.nullish(),
      Layers: z.array(z.string().max(4096)).max(127),
    }),
  )
  .max(100);
/** `index.json` of an OCI layout (image-layout.md). */
const layoutIndex = z.object({
  manifests: z.array(descriptor.extend({ annotations: z.record(z.string(), z.string()).optional() })).max(100),
});

/**
 * Reads an archive of images, as `docker save`, `podman save` and `skopeo copy` make them: an OCI layout, or Docker's own form.
 * Of an index the image for `wanted` is taken. That a layer's bytes unpack to what its config says is seen by the host that
 * first uses it.
 * @throws BerthError `invalid_archive`, `invalid_image`, `image_not_found`, and as ArchiveFiles.store.
 */
export async function readImageArchive(
  archive: AsyncIterable<Uint8Array>,
  blobs: BlobStore,
  { maxBytes, wanted }: { maxBytes: number; wanted: Platform },
): Promise<ArchivedImage[]> {
  const files = await ArchiveFiles.store(archive, blobs, maxBytes);
  const saved = await savedList(files);
  const index = files.at("index.json");
  if (index !== null) return readLayout(files, await files.read(index, "index.json"), saved, wanted);
  if (saved !== null) return Promise.all(saved.map((one) => readSaved(files, one, blobs)));
  throw new BerthError("invalid_archive", "The archive has no images: neither an index.json nor a manifest.json.");
}

type SavedImage = z.infer<typeof savedImages>[number];

async function savedList(files: ArchiveFiles): Promise<SavedImage[] | null> {
  const list = files.at("manifest.json");
  if (list === null) return null;
  // Documents are objects; this one alone is a list.
  const text = `{"list":${(await files.read(list, "manifest.json")).toString()}}`;
  return check(z.object({ list: savedImages }), parseJson(Buffer.from(text), "manifest.json"), "manifest.json").list;
}

async function readLayout(
  files: ArchiveFiles,
  bytes: Buffer,
  saved: readonly SavedImage[] | null,
  wanted: Platform,
): Promise<ArchivedImage[]> {
  const { manifests } = check(layoutIndex, parseJson(bytes, "index.json"), "index.json");
  const images = new Map<string, ArchivedImage>();
  for (const { annotations = {}, ...found } of manifests) {
    const { manifest, digest, document } = await imageManifest(files, found, wanted);
    const config = parseConfig(await files.read(blobOf(files, manifest.config), "config"));
    for (const layer of manifest.layers) blobOf(files, layer);
    const image = joinImage(manifest, digest, config, config, digest);
    const before = images.get(digest);
    const tags = saved?.find((one) => one.Config.includes(manifest.config.digest.slice("sha256:".length)))?.RepoTags;
    const own = tags ?? nameOf(annotations);
    images.set(digest, {
      image,
      manifest: document,
      digests: digestsOf(image, manifest),
      names: [...new Set([...(before?.names ?? []), ...own])],
    });
  }
  return [...images.values()];
}

const digestsOf = (image: Image, { config, layers }: ImageManifest) => [
  image.digest,
  config.digest,
  ...layers.map(({ digest }) => digest),
];

/** The name that an index gives an image; none when it is a tag alone, as skopeo writes it. */
function nameOf(annotations: Record<string, string>): string[] {
  const name = annotations["io.containerd.image.name"] ?? annotations["org.opencontainers.image.ref.name"] ?? "";
  return /[:/]/.test(name) ? [name] : [];
}

/** The image that a descriptor leads to, through indexes if need be. */
async function imageManifest(
  files: ArchiveFiles,
  found: Descriptor,
  wanted: Platform,
): Promise<{ manifest: ImageManifest; digest: string; document: Record<string, unknown> }> {
  const bytes = await files.read(blobOf(files, found), "manifest");
  const manifest = parseManifest(bytes, found.mediaType);
  if (manifest.kind === "index") {
    const chosen = selectManifest(manifest, wanted, found.digest);
    return imageManifest(files, chosen, wanted);
  }
  return { manifest, digest: found.digest, document: JSON.parse(bytes.toString("utf8")) as Record<string, unknown> };
}

/** The archive's file that a descriptor means. @throws BerthError `invalid_archive` when it has none such. */
function blobOf(files: ArchiveFiles, { digest, size }: Descriptor): ArchivedFile {
  const file = files.byDigest(digest);
  if (file === null) throw new BerthError("invalid_archive", `The archive lacks the blob ${digest}, which it names.`);
  if (file.sizeBytes !== size) {
    const detail = `The blob ${digest} has ${String(file.sizeBytes)} bytes, and not ${String(size)}.`;
    throw new BerthError("invalid_archive", detail);
  }
  return file;
}

/** An image in Docker's own form, which has no manifest: it gets one. Its config, and so its id, stays as it is. */
async function readSaved(files: ArchiveFiles, saved: SavedImage, blobs: BlobStore): Promise<ArchivedImage> {
  const named = (path: string): ArchivedFile => {
    const file = files.at(Buffer.from(path).toString("latin1"));
    if (file === null)
      throw new BerthError("invalid_archive", `The archive lacks ${JSON.stringify(path)}, which it names.`);
    return file;
  };
  const configFile = named(saved.Config);
  const config = parseConfig(await files.read(configFile, "config"));
  const layers = saved.Layers.map((path): Descriptor => {
    const { digest, sizeBytes, compression } = named(path);
    const suffix = compression === "none" ? "" : `+${compression}`;
    return { mediaType: `application/vnd.oci.image.layer.v1.tar${suffix}`, digest, size: sizeBytes };
  });
  const document = {
    schemaVersion: 2,
    mediaType: mediaTypes.ociManifest,
    config: { mediaType: mediaTypes.ociConfig, digest: configFile.digest, size: configFile.sizeBytes },
    layers,
  };
  const bytes = Buffer.from(JSON.stringify(document));
  const digest = digestOf(bytes);
  const manifest: ImageManifest = { kind: "image", ...document };
  const image = joinImage(manifest, digest, config, config, saved.Config);
  await blobs.put([bytes], { digest, maxBytes: bytes.length });
  return { image, manifest: document, digests: digestsOf(image, manifest), names: saved.RepoTags ?? [] };
}
