import { createReadStream } from "node:fs";
import { join } from "node:path";
import { createGunzip, createZstdDecompress } from "node:zlib";
import type { ImageConfig } from "../../src/core/image.ts";
import { readTar } from "../../src/image/tar-read.ts";
import { collect, sha256 } from "./image.ts";

/**
 * An image as files have it: its config, and of each layer what is in it, path → `type mode uid:gid`, target or content's
 * digest, and the time of what is older than `copiedBefore`.
 */
export interface SavedImage {
  config: ImageConfig;
  layers: Record<string, string>[];
}

/** Seconds since 1970: files of a context that are older than this keep their time, in every engine. */
const copiedBefore = 1_750_000_000;

/** What `docker save` wrote. */
export async function readDockerArchive(path: string): Promise<SavedImage> {
  const files = new Map<string, Buffer>();
  for await (const { path: name, content } of readTar(createReadStream(path))) files.set(name, await bytesOf(content));
  const file = (name: string) => files.get(name) ?? Buffer.alloc(0);
  const [image] = JSON.parse(file("manifest.json").toString()) as { Config: string; Layers: string[] }[];
  const layers = (image?.Layers ?? []).map((name) => listLayer([file(name)]));
  return { config: JSON.parse(file(image?.Config ?? "").toString()) as ImageConfig, layers: await Promise.all(layers) };
}

/** What skopeo copied to `oci:<directory>`, which has one image. */
export async function readLayout(directory: string): Promise<SavedImage & { digest: string }> {
  const open = (digest: string) => createReadStream(join(directory, "blobs", digest.replace(":", "/")));
  const document = async <T>(source: AsyncIterable<Uint8Array>) => JSON.parse((await collect(source)).toString()) as T;
  const index = await document<{ manifests: { digest: string }[] }>(createReadStream(join(directory, "index.json")));
  const digest = index.manifests[0]?.digest ?? "";
  const manifest = await document<{ config: { digest: string }; layers: { digest: string; mediaType: string }[] }>(
    open(digest),
  );
  const unpack = (mediaType: string) => (mediaType.endsWith("zstd") ? createZstdDecompress() : createGunzip());
  const layers = manifest.layers.map((layer) => listLayer(open(layer.digest).pipe(unpack(layer.mediaType))));
  return {
    digest,
    config: await document<ImageConfig>(open(manifest.config.digest)),
    layers: await Promise.all(layers),
  };
}

async function listLayer(tar: AsyncIterable<Uint8Array> | Iterable<Uint8Array>): Promise<Record<string, string>> {
  const entries: Record<string, string> = {};
  for await (const { path, type, mode, uid, gid, mtime, target, content } of readTar(chunks(tar))) {
    const what = type === "file" ? sha256(await bytesOf(content)) : target;
    const name = path.replace(/^\.?\/*|\/*$/g, "");
    const time = type !== "directory" && mtime.seconds < copiedBefore ? ` @${String(mtime.seconds)}` : "";
    entries[name] = `${type} ${mode.toString(8)} ${String(uid)}:${String(gid)} ${what}${time}`.trimEnd();
  }
  return entries;
}

async function* chunks(source: AsyncIterable<Uint8Array> | Iterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  yield* source;
}

const bytesOf = (content: AsyncIterable<Uint8Array> | Iterable<Uint8Array>) => collect(chunks(content));
