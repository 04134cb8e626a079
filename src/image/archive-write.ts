import { buffer } from "node:stream/consumers";
import { BerthError } from "../core/errors.ts";
import type { BlobStore } from "./blobs.ts";
import { type LayerEntry, noXattrs } from "./layer-entry.ts";
import { type Descriptor, type ImageManifest, mediaTypes, parseManifest } from "./manifest.ts";
import { writeTar } from "./tar-write.ts";

/** An image to be archived, and the names that it is to have. */
export interface ImageToArchive {
  digest: string;
  mediaType: string;
  names: readonly string[];
}

interface Found {
  manifest: ImageManifest;
  descriptor: Descriptor;
  names: readonly string[];
}

/**
 * The images as one archive: an OCI layout (image-layout.md) that is in Docker's form as well, so that `docker load`, `podman
 * load` and skopeo take it. Returns a tar; every blob is known to be there then. The same images give the same bytes.
 * @throws BerthError `blob_store_error` when a blob is gone
 */
export async function writeImageArchive(
  images: readonly ImageToArchive[],
  blobs: BlobStore,
): Promise<AsyncGenerator<Uint8Array, void>> {
  const found = await Promise.all(images.map((image) => findImage(image, blobs)));
  const needed = found.flatMap(({ manifest, descriptor }) => [descriptor, manifest.config, ...manifest.layers]);
  const distinct = [...new Map(needed.map((one) => [one.digest, one])).values()];
  await Promise.all(distinct.map(({ digest }) => requireBlob(digest, blobs)));
  return writeTar(entries(found, distinct, blobs));
}

function* entries(found: readonly Found[], needed: readonly Descriptor[], blobs: BlobStore): Generator<LayerEntry> {
  yield file("oci-layout", JSON.stringify({ imageLayoutVersion: "1.0.0" }));
  for (const { digest, size } of needed) yield { ...file(pathOf(digest), ""), size, content: opened(digest, blobs) };
  const manifests = found.flatMap(({ descriptor, names }) =>
    names.length === 0 ? [descriptor] : names.map((name) => ({ ...descriptor, annotations: annotationsOf(name) })),
  );
  yield file("index.json", JSON.stringify({ schemaVersion: 2, mediaType: mediaTypes.ociIndex, manifests }));
  const saved = found.map(({ manifest, names }) => ({
    Config: pathOf(manifest.config.digest),
    RepoTags: names,
    Layers: manifest.layers.map(({ digest }) => pathOf(digest)),
  }));
  yield file("manifest.json", JSON.stringify(saved));
}

const annotationsOf = (name: string) => ({
  "io.containerd.image.name": name,
  "org.opencontainers.image.ref.name": name,
});

const pathOf = (digest: string) => `blobs/sha256/${digest.slice("sha256:".length)}`;

async function findImage({ digest, mediaType, names }: ImageToArchive, blobs: BlobStore): Promise<Found> {
  const size = await requireBlob(digest, blobs);
  const manifest = parseManifest(await buffer(await blobs.open(digest)), mediaType);
  if (manifest.kind === "index") throw new Error("an image of a project is never an index");
  return { manifest, descriptor: { mediaType, digest, size }, names };
}

/** Bytes of a blob, which can be counted on from then on. */
async function requireBlob(digest: string, blobs: BlobStore): Promise<number> {
  const size = await blobs.size(digest);
  if (size === null) throw new BerthError("blob_store_error", `The blob ${digest} is not in the store any more.`);
  return size;
}

async function* opened(digest: string, blobs: BlobStore): AsyncGenerator<Uint8Array, void> {
  for await (const chunk of await blobs.open(digest)) yield chunk as Uint8Array;
}

function file(path: string, text: string): LayerEntry {
  const content = Buffer.from(text);
  return {
    ...{ path, type: "file", mode: 0o644, uid: 0, gid: 0, target: "", xattrs: noXattrs },
    mtime: { seconds: 0, nanoseconds: 0 },
    size: content.length,
    content: [content],
  };
}
