import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { createReadStream, createWriteStream } from "node:fs";
import { access, mkdir, open, readFile, rename, stat } from "node:fs/promises";
import { pipeline } from "node:stream/promises";
import { promisify } from "node:util";
import { createGzip, gzipSync } from "node:zlib";
import { writeImage } from "../../src/image/manifest.ts";
import { writeTar } from "../../src/image/tar-write.ts";
import { collect, entry } from "../support/image.ts";

const directory = new URL("../../.bench/", import.meta.url).pathname;
const exists = (path: string) =>
  access(path).then(
    () => true,
    () => false,
  );

/** A base image as people pull it: Debian, one layer. */
export interface DebianBase {
  /** The layer, gzipped, without the end of the archive, so that an entry can be added behind. */
  gzip: Buffer;
  /** The hash so far of what is in it. */
  diffId: ReturnType<typeof createHash>;
}

/** Debian's minimal system by mmdebstrap, made once and kept; null: mmdebstrap is not installed. */
export async function debianBase(): Promise<DebianBase | null> {
  if (!(await exists("/usr/bin/mmdebstrap"))) return null;
  await mkdir(directory, { recursive: true });
  const tar = `${directory}debian.tar`;
  if (!(await exists(tar))) {
    await promisify(execFile)("mmdebstrap", ["--variant=minbase", "--quiet", "--format=tar", "bookworm", `${tar}.new`]);
    await rename(`${tar}.new`, tar);
  }
  const end = await contentEnd(tar);
  const gzip = `${tar}.gz`;
  if (!(await exists(gzip))) {
    await pipeline(createReadStream(tar, { end: end - 1 }), createGzip(), createWriteStream(`${gzip}.new`));
    await rename(`${gzip}.new`, gzip);
  }
  const diffId = createHash("sha256");
  for await (const chunk of createReadStream(tar, { end: end - 1 })) diffId.update(chunk as Buffer);
  return { gzip: await readFile(gzip), diffId };
}

/** Where the zeros begin that end a tar, in blocks of 512 bytes. */
async function contentEnd(tar: string): Promise<number> {
  const { size } = await stat(tar);
  const tail = Buffer.alloc(Math.min(size, 64 * 1024));
  const file = await open(tar);
  try {
    await file.read(tail, 0, tail.length, size - tail.length);
  } finally {
    await file.close();
  }
  let used = tail.length;
  while (used > 0 && tail[used - 1] === 0) used--;
  return size - tail.length + Math.ceil(used / 512) * 512;
}

const sha256 = (bytes: Uint8Array) => `sha256:${createHash("sha256").update(bytes).digest("hex")}`;

/**
 * Puts the image into a registry under this reference. Each reference's layer has one small file more, so that none has
 * a layer of another's: an engine has to pull all of it.
 */
export async function publishDebian(base: DebianBase, host: string, repository: string, tag: string): Promise<void> {
  const more = await collect(writeTar([entry(`etc/bench-${tag}`, { content: `${repository}:${tag}\n` })]));
  const layer = Buffer.concat([base.gzip, gzipSync(more)]);
  const { manifest, config, configDigest, image } = writeImage(
    { architecture: "amd64", os: "linux", config: { Cmd: ["/bin/sh"], Env: ["PATH=/usr/bin:/bin"] } },
    [
      {
        digest: sha256(layer),
        diffId: `sha256:${base.diffId.copy().update(more).digest("hex")}`,
        sizeBytes: layer.length,
        mediaType: "application/vnd.oci.image.layer.v1.tar+gzip",
      },
    ],
  );
  const at = `http://${host}/v2/${repository}`;
  for (const [digest, bytes] of [
    [sha256(layer), layer],
    [configDigest, Buffer.from(config)],
  ] as const) {
    const begun = await fetch(`${at}/blobs/uploads/`, { method: "POST" });
    const target = new URL(begun.headers.get("location") ?? "", at);
    target.searchParams.set("digest", digest);
    const headers = { "content-type": "application/octet-stream" };
    const done = await fetch(target, { method: "PUT", body: bytes, headers });
    if (done.status !== 201) throw new Error(`the registry answered ${String(done.status)}: ${await done.text()}`);
  }
  const headers = { "content-type": image.mediaType };
  const done = await fetch(`${at}/manifests/${tag}`, { method: "PUT", body: Buffer.from(manifest), headers });
  if (done.status !== 201) throw new Error(`the registry answered ${String(done.status)}: ${await done.text()}`);
}
