import { Readable } from "node:stream";
import { z } from "@hono/zod-openapi";
import { BerthError } from "../core/errors.ts";
import { projectReference } from "../core/image-choice.ts";
import { platformOf } from "../core/platform.ts";
import { formatReference, type ImageReference, repositoryName } from "../core/reference.ts";
import { findImage, insertImage } from "../db/images.ts";
import { type ArchivedImage, readImageArchive } from "../image/archive-read.ts";
import { writeImageArchive } from "../image/archive-write.ts";
import type { App, Request, Services } from "./context.ts";
import { heldStream } from "./held-stream.ts";
import { idempotencyHeader, once } from "./idempotency.ts";
import { Image, imageView, nameImage, noImage, Reference, resolveImage } from "./images.ts";
import { json, operation } from "./operation.ts";
import { repeated } from "./parameters.ts";
import { invalidRequest } from "./problem.ts";
import { Uploads } from "./uploads.ts";

const tag = "Images";
const tar = "application/x-tar";
const binary = z.string().openapi({ type: "string", format: "binary" });
const maxImages = 20;

const save = operation({
  method: "get",
  path: "/v1/images/archive",
  operationId: "saveImages",
  tag,
  summary: "Get images as one archive",
  description:
    "A tar that is both an OCI layout and in Docker's own form: `docker load`, `podman load`, skopeo and another Berth take it.",
  request: {
    query: z.strictObject({
      reference: repeated(Reference)
        .refine((list) => list.length > 0 && list.length <= maxImages, `Must be given, 1 to ${String(maxImages)} times`)
        .openapi({
          type: "array",
          items: { type: "string" },
          description: "References or digests; the images have these names in the archive.",
          example: ["web:1"],
        }),
    }),
  },
  responses: { 200: { description: "The archive", content: { [tar]: { schema: binary } } } },
  errors: ["invalid_reference", "image_not_found", "blob_store_error"],
});

const load = operation({
  method: "post",
  path: "/v1/images/archive",
  operationId: "loadImages",
  tag,
  summary: "Take in the images of an archive",
  description:
    "The body is a tar, plain or compressed with gzip or zstd, as `docker save`, `podman save` or `skopeo copy` write it: an OCI " +
    "layout, or Docker's own form. Names without a registry become the project's own. Of an image for several platforms the " +
    "one for this machine is taken. Everything that it names must be in the archive.",
  request: {
    headers: idempotencyHeader,
    query: z.strictObject({
      reference: Reference.optional().openapi({
        description: "The name of the archive's only image, in place of those that it has.",
        example: "web:1",
      }),
    }),
    body: { required: true, content: { [tar]: { schema: binary } } },
  },
  responses: {
    201: json(
      z.object({ items: z.array(Image) }).openapi("LoadedImages"),
      "The images, by the first of their new names",
    ),
  },
  errors: [
    "invalid_reference",
    "invalid_archive",
    "invalid_image",
    "image_not_found",
    "digest_mismatch",
    "body_too_large",
    "too_many_requests",
    "idempotency_key_reused",
    "blob_store_error",
    "disk_full",
  ],
});

/** An image and the names that the project gives it. */
interface NamedArchive extends ArchivedImage {
  references: (ImageReference & { tag: string })[];
}

export function addImageArchives(app: App, services: Services): void {
  const { sql, limits } = services;
  const uploads = new Uploads(limits.uploads);

  app.openapi(save, async (c) => {
    const images = new Map<string, { digest: string; mediaType: string; names: string[] }>();
    for (const text of c.req.valid("query").reference) {
      const { digest, reference } = await resolveImage(sql, c, text);
      const row = await findImage(sql, c.var.scope, digest);
      if (row === null) throw noImage(text);
      const image = images.get(digest) ?? { digest, mediaType: row.mediaType, names: [] };
      // A digest is no name that could be loaded.
      if (reference !== null && reference.digest === null) image.names.push(formatReference(reference));
      images.set(digest, image);
    }
    const archive = await writeImageArchive([...images.values()], services.blobs);
    return heldStream(services, c, tar, () => archive);
  });

  app.openapi(load, async (c) => {
    const { scope } = c.var;
    const { reference } = c.req.valid("query");
    const found = await uploads.store(scope.projectId, () => readBody(services, c));
    const named = namedImages(c, found, reference);
    const request = JSON.stringify(named.map(({ image, references }) => [image.digest, references]));
    const loaded = await once(
      services,
      c,
      async (tx) => {
        const items: z.infer<typeof Image>[] = [];
        for (const { image, manifest } of named.toSorted(byDigest)) {
          const sizeBytes = image.layers.reduce((sum, layer) => sum + layer.sizeBytes, 0);
          await insertImage(tx, scope.projectId, { ...image, manifest, sizeBytes });
        }
        for (const { name, digest } of namesOf(named)) await nameImage(tx, scope.projectId, name, digest);
        for (const { image, references } of named) {
          const row = await findImage(tx, scope, image.digest);
          const [first] = references;
          if (row === null || first === undefined) throw noImage(image.digest);
          items.push(imageView(row, formatReference(first)));
        }
        return { items };
      },
      { request },
    );
    return c.json(loaded, 201);
  });
}

const byDigest = (one: NamedArchive, other: NamedArchive) => (one.image.digest < other.image.digest ? -1 : 1);

/** All names that are given, in their order. */
function namesOf(images: readonly NamedArchive[]): { name: ImageReference; digest: string }[] {
  return images
    .flatMap(({ image, references }) =>
      references.map((name) => ({ name, digest: image.digest, key: `${repositoryName(name)}\0${name.tag}` })),
    )
    .toSorted((one, other) => (one.key < other.key ? -1 : 1));
}

async function readBody({ blobs, limits }: Services, c: Request): Promise<ArchivedImage[]> {
  const { body } = c.req.raw;
  if (body === null) throw new BerthError("invalid_archive", "The body is empty; a tar is expected.");
  if (c.req.header("content-encoding") !== undefined) {
    throw new BerthError("unsupported_media_type", "Send a compressed tar as it is, without Content-Encoding.");
  }
  const maxBytes = limits.contextBytes;
  if (Number(c.req.header("content-length") ?? 0) > maxBytes) {
    throw new BerthError("body_too_large", `An archive has at most ${String(maxBytes)} bytes.`);
  }
  const images = await readImageArchive(Readable.fromWeb(body), blobs, { maxBytes, wanted: platformOf(process.arch) });
  // An upload may have taken long: from here on nothing of it is collected until it is recorded.
  for (const { digests } of images) {
    for (const digest of digests) {
      if ((await blobs.size(digest)) === null) throw new BerthError("blob_store_error", `The blob ${digest} is gone.`);
    }
  }
  return images;
}

/** @throws BerthError `invalid_archive` when an image has no name, `invalid_reference`, `invalid_request` */
function namedImages(c: Request, images: readonly ArchivedImage[], asked: string | undefined): NamedArchive[] {
  if (images.length === 0) throw new BerthError("invalid_archive", "The archive has no images.");
  if (asked !== undefined && images.length > 1) {
    const detail = `names one image, and the archive has ${String(images.length)}.`;
    throw invalidRequest([{ pointer: "query/reference", detail }]);
  }
  return images.map((image) => {
    const texts = asked === undefined ? image.names : [asked];
    if (texts.length === 0) {
      const detail = `The image ${image.image.digest} has no name in the archive: give it one with ?reference=NAME:TAG.`;
      throw new BerthError("invalid_archive", detail);
    }
    return { ...image, references: texts.map((text) => nameFor(c, text)) };
  });
}

function nameFor(c: Request, text: string): ImageReference & { tag: string } {
  const reference = projectReference(text, c.var.project.name);
  if (reference.tag === null || reference.digest !== null) {
    throw new BerthError(
      "invalid_reference",
      `${text} can't be an image's name: it must be NAME:TAG, without a digest.`,
    );
  }
  return { ...reference, tag: reference.tag };
}
