import { Readable } from "node:stream";
import { buffer } from "node:stream/consumers";
import { nanoid } from "nanoid";
import { z } from "zod";
import { BerthError } from "../core/errors.ts";
import type { Image } from "../core/image.ts";
import { open, seal } from "../core/keys.ts";
import { platformFit, platformOf } from "../core/platform.ts";
import { digestPattern, type ImageReference, parseReference } from "../core/reference.ts";
import { deleteTag, insertImage } from "../db/images.ts";
import { hasBlob } from "../db/registry-reads.ts";
import { transact } from "../db/scope.ts";
import { recordUpload } from "../db/uploaded-blobs.ts";
import type { StoredBlob } from "../image/blobs.ts";
import { digestOf } from "../image/digest.ts";
import { maxDocumentBytes } from "../image/document.ts";
import {
  type Descriptor,
  type ImageIndex,
  type ImageManifest,
  joinImage,
  parseConfig,
  parseManifest,
  selectManifest,
} from "../image/manifest.ts";
import type { App, Request, Services } from "./context.ts";
import { nameImage } from "./images.ts";
import { badUpload, unknown } from "./registry-errors.ts";
import { Uploads } from "./uploads.ts";

/** An upload as far as it has come. It is in its URL, sealed, so that any instance of the API goes on with it. */
const UploadState = z.object({
  id: z.string(),
  /** Of all that came, which is a blob of the store; null: nothing yet. */
  digest: z.string().nullable(),
  sizeBytes: z.int(),
});
type UploadState = z.infer<typeof UploadState>;

/**
 * The writing half of the registry: `docker push HOST/PROJECT/web:1`. A manifest may name what its project has sent, or has
 * in its images: to name the digest of somebody else's blob gives nothing. Of an index the image for this machine is kept.
 * @param v2 the path of a repository
 */
export function addRegistryPush(app: App, services: Services, v2: string): void {
  const { sql, secretKey, limits } = services;
  const uploads = new Uploads(limits.uploads);
  const purpose = (c: Request) => `upload:${c.var.scope.projectId}`;
  const nameOf = (c: Request) =>
    `/v2/${c.req.param("project") ?? ""}/${ownRepository(c.req.param("repository") ?? "")}`;

  const stateOf = (c: Request): UploadState => {
    ownRepository(c.req.param("repository") ?? "");
    try {
      return UploadState.parse(JSON.parse(open(secretKey, purpose(c), c.req.query("state") ?? "")));
    } catch {
      throw unknownUpload();
    }
  };

  /** Where the upload goes on. */
  const goOn = (c: Request, state: UploadState, status: 202 | 204) => {
    const sealed = seal(secretKey, purpose(c), JSON.stringify(state));
    c.header("Location", `${nameOf(c)}/blobs/uploads/${state.id}?state=${sealed}`);
    c.header("Range", `0-${Math.max(0, state.sizeBytes - 1)}`);
    c.header("Docker-Upload-UUID", state.id);
    return c.body(null, status);
  };

  /**
   * Stores what came before and what comes now as one blob.
   * @param expected the digest that it must have
   */
  const append = async (c: Request, state: UploadState, expected?: string): Promise<StoredBlob | null> => {
    const { body } = c.req.raw;
    const { digest, sizeBytes } = state;
    requireRange(c, sizeBytes);
    if (sizeBytes + Number(c.req.header("content-length") ?? 0) > limits.contextBytes) {
      throw new BerthError("body_too_large", `A blob has at most ${limits.contextBytes} bytes.`);
    }
    // From here on what came before is not collected.
    if (digest !== null && (await services.blobs.size(digest)) === null) throw unknownUpload();
    if (body === null || c.req.header("content-length") === "0") return digest === null ? null : { digest, sizeBytes };
    const whole = joined(services, digest, Readable.fromWeb(body));
    const expect = { maxBytes: limits.contextBytes, ...(expected === undefined ? {} : { digest: expected }) };
    return uploads.store(c.var.scope.projectId, () => services.blobs.put(whole, expect));
  };

  const finish = async (c: Request, state: UploadState, digest: string) => {
    if (!digestPattern.test(digest)) {
      throw new BerthError("digest_mismatch", "The digest must be sha256: and 64 hex digits.");
    }
    const stored = (await append(c, state, digest)) ?? (await services.blobs.put([], { maxBytes: 0 }));
    if (stored.digest !== digest) {
      throw new BerthError("digest_mismatch", `The content has the digest ${stored.digest}, not ${digest}.`);
    }
    await transact(sql, c.var.scope, (tx) => recordUpload(tx, c.var.scope, stored));
    return created(c, digest);
  };

  const created = (c: Request, digest: string) => {
    c.header("Location", `${nameOf(c)}/blobs/${digest}`);
    c.header("Docker-Content-Digest", digest);
    return c.body(null, 201);
  };

  app.post(`${v2}/blobs/uploads/`, async (c) => {
    ownRepository(c.req.param("repository") ?? "");
    const { digest, mount, from = "" } = c.req.query() as Record<string, string | undefined>;
    const state: UploadState = { id: nanoid(), digest: null, sizeBytes: 0 };
    if (digest !== undefined) return finish(c, state, digest);
    if (mount !== undefined && (await mounted(services, c, mount, from))) return created(c, mount);
    return goOn(c, state, 202);
  });

  app.get(`${v2}/blobs/uploads/:upload`, (c) => goOn(c, stateOf(c), 204));

  app.delete(`${v2}/blobs/uploads/:upload`, (c) => {
    stateOf(c);
    return c.body(null, 204);
  });

  app.patch(`${v2}/blobs/uploads/:upload`, async (c) => {
    const state = stateOf(c);
    const stored = await append(c, state);
    return goOn(c, { ...state, ...stored }, 202);
  });

  app.put(`${v2}/blobs/uploads/:upload`, (c) => finish(c, stateOf(c), c.req.query("digest") ?? ""));

  app.put(`${v2}/manifests/:reference`, async (c) => {
    const repository = ownRepository(c.req.param("repository") ?? "");
    const text = c.req.param("reference");
    const bytes = await uploads.store(c.var.scope.projectId, () => readDocument(c));
    const digest = digestOf(bytes);
    const byDigest = digestPattern.test(text);
    if (byDigest && text !== digest) {
      throw new BerthError("digest_mismatch", `The manifest has the digest ${digest}, not ${text}.`);
    }
    const reference = byDigest ? parseReference(`${repository}@${digest}`) : tagged(repository, text);
    const image = await imageOf(services, c, { bytes, digest, byDigest });
    await services.blobs.put([bytes], { digest, maxBytes: bytes.length });
    await record(services, c, { digest, sizeBytes: bytes.length }, image, reference);
    c.header("Location", `${nameOf(c)}/manifests/${digest}`);
    c.header("Docker-Content-Digest", digest);
    return c.body(null, 201);
  });
}

/** What a manifest that was sent makes. */
interface SentImage {
  image: Image;
  manifest: Record<string, unknown>;
}

/**
 * The image that a manifest describes, or an index for this machine. null: it is none that runs, and is only kept for
 * a day: an attestation, say, or another platform's that an index is about to name.
 */
async function imageOf(
  services: Services,
  c: Request,
  { bytes, digest, byDigest }: { bytes: Buffer; digest: string; byDigest: boolean },
): Promise<SentImage | null> {
  let parsed: ImageManifest | ImageIndex;
  try {
    parsed = parseManifest(bytes, c.req.header("content-type") ?? "");
  } catch (error) {
    if (byDigest) return null;
    throw error;
  }
  const wanted = platformOf(process.arch);
  if (parsed.kind === "image") {
    const sent = await imageWith(services, c, parsed, bytes, digest);
    return byDigest && platformFit(wanted, sent.image.config) === 0 ? null : sent;
  }
  if (byDigest) return null;
  const chosen = selectManifest(parsed, wanted, c.req.param("reference") ?? "");
  await requireBlob(services, c, chosen);
  const child = await buffer(await services.blobs.open(chosen.digest));
  return imageWith(services, c, parseManifest(child, chosen.mediaType) as ImageManifest, child, chosen.digest);
}

async function imageWith(
  services: Services,
  c: Request,
  manifest: ImageManifest,
  bytes: Buffer,
  digest: string,
): Promise<SentImage> {
  for (const blob of [manifest.config, ...manifest.layers]) await requireBlob(services, c, blob);
  const config = parseConfig(await buffer(await services.blobs.open(manifest.config.digest)));
  const image = joinImage(manifest, digest, config, config, digest);
  return { image, manifest: JSON.parse(bytes.toString("utf8")) as Record<string, unknown> };
}

async function record(
  { sql }: Services,
  c: Request,
  manifest: StoredBlob,
  sent: SentImage | null,
  reference: ImageReference,
): Promise<void> {
  const { scope } = c.var;
  const { projectId } = scope;
  const { repository } = reference;
  await transact(sql, scope, async (tx) => {
    await recordUpload(tx, scope, manifest);
    if (sent === null) return;
    const { digest, layers } = sent.image;
    const sizeBytes = layers.reduce((sum, layer) => sum + layer.sizeBytes, 0);
    await insertImage(tx, projectId, { ...sent.image, manifest: sent.manifest, sizeBytes });
    // One that has a name needs none that only keeps it.
    if (reference.tag !== null) await deleteTag(tx, { projectId, repository, tag: `@${digest}` });
    await nameImage(tx, projectId, reference, digest);
  });
}

/** A repository of the project's own, whose name has no registry in it. @throws BerthError `invalid_reference` */
function ownRepository(name: string): string {
  const { registry, repository, tag, digest } = parseReference(name);
  if (registry === null && digest === null && tag === "latest" && repository === name) return repository;
  throw new BerthError(
    "invalid_reference",
    `${JSON.stringify(name.slice(0, 300))} can't be a repository of a project.`,
  );
}

/** A tag in a repository, and nothing else that a reference may have. @throws BerthError `invalid_reference` */
function tagged(repository: string, tag: string): ImageReference {
  const reference = parseReference(`${repository}:${tag}`);
  if (reference.repository === repository && reference.tag === tag) return reference;
  throw new BerthError("invalid_reference", `${JSON.stringify(tag.slice(0, 300))} can't be a tag.`);
}

const unknownUpload = () => unknown("BLOB_UPLOAD_UNKNOWN", "There is no such upload.");

/** What comes must be what follows, where its sender says what it is: `Content-Range: 0-9`, or as RFC 9110 has it. */
function requireRange(c: Request, sizeBytes: number): void {
  const range = /^(?:bytes[ =])?(\d{1,15})-(\d{1,15})(?:\/[\d*]+)?$/.exec(c.req.header("content-range") ?? "");
  if (range === null) return;
  const [start, end] = [Number(range[1]), Number(range[2])];
  if (start !== sizeBytes) throw badUpload(`The upload has ${sizeBytes} bytes.`);
  const length = c.req.header("content-length");
  if (length !== undefined && Number(length) !== end - start + 1) {
    throw badUpload(`The body has ${length} bytes, and not ${start} to ${end}.`);
  }
}

/** Whether a blob of another repository of the project is now one that was sent. */
async function mounted({ sql, blobs }: Services, c: Request, digest: string, from: string): Promise<boolean> {
  const { scope, project } = c.var;
  const repository = from.startsWith(`${project.name}/`) ? from.slice(project.name.length + 1) : from;
  if (!digestPattern.test(digest) || !(await hasBlob(sql, scope, repository, digest))) return false;
  const sizeBytes = await blobs.size(digest);
  if (sizeBytes === null) return false;
  await transact(sql, scope, (tx) => recordUpload(tx, scope, { digest, sizeBytes }));
  return true;
}

/** A blob that the project has sent, or has in an image of the repository. */
async function requireBlob({ sql, blobs }: Services, c: Request, { digest, size }: Descriptor): Promise<void> {
  const repository = c.req.param("repository") ?? "";
  const known = (await hasBlob(sql, c.var.scope, repository, digest)) && (await blobs.size(digest)) === size;
  if (!known) throw unknown("MANIFEST_BLOB_UNKNOWN", `${digest} was not sent, with ${size} bytes.`);
}

async function readDocument(c: Request): Promise<Buffer> {
  const parts: Uint8Array[] = [];
  let bytes = 0;
  for await (const part of (c.req.raw.body ?? []) as AsyncIterable<Uint8Array>) {
    bytes += part.length;
    if (bytes > maxDocumentBytes) throw new BerthError("body_too_large", "A manifest has at most 4 MiB.");
    parts.push(part);
  }
  return Buffer.concat(parts);
}

async function* joined({ blobs }: Services, before: string | null, more: Readable): AsyncGenerator<Uint8Array, void> {
  if (before !== null) for await (const chunk of await blobs.open(before)) yield chunk as Uint8Array;
  for await (const chunk of more) yield chunk as Uint8Array;
}
