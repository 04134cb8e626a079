import { createHash } from "node:crypto";
import { Readable } from "node:stream";
import { gzipSync } from "node:zlib";
import type { Image, ImageProcess, Layer } from "../../src/core/image.ts";
import type { LayerEntry } from "../../src/image/layer-entry.ts";
import { noContent, noXattrs } from "../../src/image/layer-entry.ts";
import { mediaTypes, writeImage } from "../../src/image/manifest.ts";
import { writeTar } from "../../src/image/tar-write.ts";

/** An entry with what it does not say filled in; text content gives the size. */
export function entry(
  path: string,
  more: Partial<Omit<LayerEntry, "content">> & { content?: string | Uint8Array } = {},
): LayerEntry {
  const { content, ...rest } = more;
  const bytes = content === undefined ? null : Buffer.from(content);
  return {
    path,
    type: "file",
    mode: rest.type === "directory" ? 0o755 : 0o644,
    uid: 0,
    gid: 0,
    mtime: { seconds: 1_700_000_000, nanoseconds: 0 },
    size: bytes?.length ?? 0,
    target: "",
    xattrs: noXattrs,
    content: bytes === null ? noContent : [bytes],
    ...rest,
  };
}

export async function collect(source: AsyncIterable<Uint8Array>): Promise<Buffer> {
  return Buffer.concat(await gather(source));
}

/** The bytes in pieces of so many: no boundary may matter. */
export function chunked(bytes: Uint8Array, size: number): AsyncIterable<Uint8Array> {
  return Readable.from(pieces(bytes, size));
}

function* pieces(bytes: Uint8Array, size: number): Generator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size);
}

/** These values, and then an error. */
export function breaking<T>(values: readonly T[], message: string): AsyncIterable<T> {
  return Readable.from(
    (function* () {
      yield* values;
      throw new Error(message);
    })(),
  );
}

/** All that a source gives. */
export async function gather<T>(source: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const one of source) all.push(one);
  return all;
}

export function sha256(bytes: Uint8Array): string {
  return `sha256:${createHash("sha256").update(bytes).digest("hex")}`;
}

/** A layer's blob (gzip) of these entries, with its description. */
export async function layerBlob(entries: LayerEntry[]): Promise<{ layer: Layer; blob: Buffer }> {
  const tar = await collect(writeTar(entries));
  const blob = gzipSync(tar, { level: 1 });
  const mediaType = "application/vnd.oci.image.layer.v1.tar+gzip";
  return { layer: { digest: sha256(blob), diffId: sha256(tar), sizeBytes: blob.length, mediaType }, blob };
}

/** Pushes an image of these layers to a registry by the distribution API. */
export async function pushImage(
  host: string,
  repository: string,
  tag: string,
  layers: readonly { layer: Layer; blob: Buffer }[],
  more: { config?: ImageProcess; architecture?: string; authorization?: string } = {},
): Promise<Image> {
  const headers: Record<string, string> = more.authorization === undefined ? {} : { authorization: more.authorization };
  const { image, manifest, config, configDigest } = writeImage(
    { architecture: more.architecture ?? "amd64", os: "linux", config: more.config ?? {} },
    layers.map(({ layer }) => layer),
  );
  const base = `http://${host}/v2/${repository}`;
  for (const [digest, blob] of [
    ...layers.map((l) => [l.layer.digest, l.blob] as const),
    [configDigest, config] as const,
  ]) {
    const started = await fetch(`${base}/blobs/uploads/`, { method: "POST", headers });
    const location = new URL(started.headers.get("location") ?? "", base);
    location.searchParams.set("digest", digest);
    const stored = await fetch(location, { method: "PUT", headers, body: Buffer.from(blob) });
    if (stored.status !== 201) throw new Error(`blob: ${String(stored.status)} ${await stored.text()}`);
  }
  await pushManifest(host, repository, tag, Buffer.from(manifest), mediaTypes.ociManifest, headers);
  return image;
}

export async function pushManifest(
  host: string,
  repository: string,
  tag: string,
  manifest: Buffer,
  mediaType: string,
  headers: Record<string, string> = {},
): Promise<void> {
  const stored = await fetch(`http://${host}/v2/${repository}/manifests/${tag}`, {
    method: "PUT",
    headers: { ...headers, "content-type": mediaType },
    body: new Uint8Array(manifest),
  });
  if (stored.status !== 201) throw new Error(`manifest: ${String(stored.status)} ${await stored.text()}`);
}
