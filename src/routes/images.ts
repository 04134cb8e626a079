import { z } from "@hono/zod-openapi";
import { BerthError } from "../core/errors.ts";
import { projectReference } from "../core/image-choice.ts";
import {
  digestPattern,
  formatReference,
  hubReference,
  type ImageReference,
  repositoryName,
} from "../core/reference.ts";
import { appendEvent } from "../db/events.ts";
import {
  deleteImage,
  deleteTag,
  findImage,
  type ImageRow,
  imageUsers,
  knownImage,
  listImages,
  putTag,
} from "../db/images.ts";
import { lock, type Sql, type Tx, transact } from "../db/scope.ts";
import type { App, Request, Services } from "./context.ts";
import { idempotencyHeader, once } from "./idempotency.ts";
import { body, json, operation } from "./operation.ts";
import { labelFilter, listOf, listSchema, pageOf, pageQuery } from "./parameters.ts";

const tag = "Images";

export const Reference = z.string().min(1).max(512).openapi({ example: "web:1" });
const params = z.object({
  reference: Reference.openapi({
    param: { name: "reference", in: "path" },
    description: "A reference or a digest, URL-encoded.",
    example: "web:1",
  }),
});

const ImageSummary = z.object({
  reference: z
    .string()
    .nullable()
    .openapi({ description: "The name it was asked by, else its first tag.", example: "web:1" }),
  digest: z.string().openapi({ example: `sha256:${"0".repeat(64)}` }),
  tags: z.array(z.string()),
  sizeBytes: z.int().openapi({ description: "Of its layers, compressed." }),
  createdAt: z.iso.datetime(),
  architecture: z.string().openapi({ example: "amd64" }),
  os: z.string().openapi({ example: "linux" }),
});

export const Image = ImageSummary.extend({
  config: z
    .record(z.string(), z.unknown())
    .openapi({ description: "The `config` object of OCI's image configuration." }),
  layers: z.array(z.object({ digest: z.string(), diffId: z.string(), sizeBytes: z.int(), mediaType: z.string() })),
  history: z.array(z.record(z.string(), z.unknown())),
}).openapi("Image");

const list = operation({
  method: "get",
  path: "/v1/images",
  operationId: "listImages",
  tag,
  summary: "List images, newest first",
  request: { query: z.strictObject({ ...pageQuery, label: labelFilter, repository: z.string().max(255).optional() }) },
  responses: { 200: json(listSchema("ImageList", ImageSummary.openapi("ImageSummary")), "A page of images") },
});

const get = operation({
  method: "get",
  path: "/v1/images/{reference}",
  operationId: "getImage",
  tag,
  summary: "Get an image",
  request: { params },
  responses: { 200: json(Image, "The image") },
  errors: ["invalid_reference", "image_not_found"],
});

const putTagRoute = operation({
  method: "post",
  path: "/v1/images/tag",
  operationId: "tagImage",
  tag,
  summary: "Give an image another name",
  request: {
    headers: idempotencyHeader,
    body: body(
      z
        .strictObject({
          source: Reference,
          target: Reference.openapi({ description: "A name of the project's own.", example: "web:stable" }),
        })
        .openapi("ImageTag"),
    ),
  },
  responses: { 201: json(Image, "The image by its new name") },
  errors: ["invalid_reference", "image_not_found", "idempotency_key_reused"],
});

const remove = operation({
  method: "delete",
  path: "/v1/images/{reference}",
  operationId: "deleteImage",
  tag,
  summary: "Remove a name, and with the last one the image; by digest the image with all its names",
  request: { params },
  responses: {
    200: json(
      z.object({ untagged: z.array(z.string()), deleted: z.string().nullable() }).openapi("ImageDeletion", {
        example: { untagged: ["web:1"], deleted: null },
      }),
      "What was removed; `deleted` is the digest when the image went",
    ),
  },
  errors: ["invalid_reference", "image_not_found", "image_in_use"],
});

function summary(row: ImageRow, reference: string | null) {
  return {
    reference: reference ?? row.tags[0] ?? null,
    digest: row.digest,
    tags: row.tags,
    sizeBytes: row.sizeBytes,
    createdAt: row.createdAt,
    architecture: row.config.architecture,
    os: row.config.os,
  };
}

export function imageView(row: ImageRow, reference: string | null): z.infer<typeof Image> {
  return {
    ...summary(row, reference),
    config: { ...row.config.config },
    layers: row.layers,
    history: (row.config.history ?? []).map((entry) => ({ ...entry })),
  };
}

/** What a client calls an image: the digest, or the reference as the project means it. */
export interface NamedImage {
  digest: string;
  /** null: it was named by digest. */
  reference: ImageReference | null;
}

/** The project's image that is called so. @throws BerthError `invalid_reference`, `image_not_found` */
export async function resolveImage(sql: Sql, c: Request, text: string): Promise<NamedImage> {
  if (digestPattern.test(text)) return { digest: text, reference: null };
  const asked = projectReference(text, c.var.project.name);
  const known = await knownImage(sql, c.var.scope, asked);
  const digest = known.own ? known.ownDigest : known.hubDigest;
  if (digest === null) throw noImage(text);
  return { digest, reference: known.own ? asked : hubReference(asked) };
}

export const noImage = (text: string) => new BerthError("image_not_found", `The project has no image ${text}.`);

/** A name that the project gives an image itself. @throws BerthError `invalid_reference` when it is not one. */
export function ownName(text: string, projectName: string): ImageReference & { tag: string } {
  const reference = projectReference(text, projectName);
  if (reference.registry !== null || reference.tag === null || reference.digest !== null) {
    throw new BerthError(
      "invalid_reference",
      `${text} can't be a tag: it must be NAME:TAG, without registry and digest.`,
    );
  }
  return { ...reference, tag: reference.tag };
}

/**
 * Gives an image of the project a name, whatever had it before. Who gives several gives them by repository and tag in their
 * order, as builds do: two that move the same ones would wait for each other.
 */
export async function nameImage(tx: Tx, projectId: string, name: ImageReference, digest: string): Promise<void> {
  // One by digest alone has a tag that no client can write, so that the image keeps its repository.
  const tag = name.tag ?? `@${name.digest ?? digest}`;
  await putTag(tx, { projectId, repository: repositoryName(name), tag, digest });
  const data = { reference: formatReference(name) };
  await appendEvent(tx, { projectId, type: "image.tagged", subjectId: digest, data });
}

export function addImages(app: App, services: Services): void {
  const { sql } = services;

  app.openapi(list, async (c) => {
    const query = c.req.valid("query");
    const page = pageOf(query);
    const rows = await listImages(sql, c.var.scope, { labels: query.label, repository: query.repository }, page);
    return c.json(
      listOf(
        page,
        rows,
        (row) => row.digest,
        (row) => summary(row, null),
      ),
      200,
    );
  });

  app.openapi(get, async (c) => {
    const { reference } = c.req.valid("param");
    const named = await resolveImage(sql, c, reference);
    const row = await findImage(sql, c.var.scope, named.digest);
    if (row === null) throw noImage(reference);
    return c.json(imageView(row, named.reference === null ? null : formatReference(named.reference)), 200);
  });

  app.openapi(putTagRoute, async (c) => {
    const { scope, project } = c.var;
    const { source, target } = c.req.valid("json");
    const name = ownName(target, project.name);
    const view = await once(services, c, async (tx) => {
      const { digest } = await resolveImage(tx, c, source);
      if ((await findImage(tx, scope, digest)) === null) throw noImage(source);
      await nameImage(tx, scope.projectId, name, digest);
      const row = await findImage(tx, scope, digest);
      if (row === null) throw noImage(source);
      return imageView(row, formatReference(name));
    });
    return c.json(view, 201);
  });

  app.openapi(remove, async (c) => {
    const { scope } = c.var;
    const { reference: text } = c.req.valid("param");
    const done = await transact(sql, scope, async (tx) => {
      // Containers are created under this lock: none can choose the image while it goes.
      await lock(tx, `quota:${scope.projectId}`);
      const named = await resolveImage(tx, c, text);
      const row = await findImage(tx, scope, named.digest);
      if (row === null) throw noImage(text);
      const last = named.reference === null || (await untag(tx, c, named.reference)) === 0;
      if (last) await removeUnused(tx, c, row.digest);
      const untagged = named.reference === null ? row.tags : [formatReference(named.reference)];
      await appendEvent(tx, {
        projectId: scope.projectId,
        type: last ? "image.deleted" : "image.untagged",
        subjectId: row.digest,
        data: { untagged },
      });
      return { untagged, deleted: last ? row.digest : null };
    });
    return c.json(done, 200);
  });
}

/** Takes the name away; how many the image has left. */
async function untag(tx: Tx, c: Request, reference: ImageReference): Promise<number> {
  const repository = repositoryName(reference);
  const tagName = reference.tag ?? `@${reference.digest ?? ""}`;
  const gone = await deleteTag(tx, { projectId: c.var.scope.projectId, repository, tag: tagName });
  if (gone === null) throw noImage(formatReference(reference));
  return gone.left;
}

async function removeUnused(tx: Tx, c: Request, digest: string): Promise<void> {
  const users = await imageUsers(tx, c.var.scope.projectId, digest);
  if (users.length > 0) throw new BerthError("image_in_use", `The image is used by ${users.join(", ")}.`);
  await deleteImage(tx, c.var.scope.projectId, digest);
}
