import { Readable } from "node:stream";
import { z } from "@hono/zod-openapi";
import type { BuildRequest } from "../core/build-request.ts";
import { BerthError } from "../core/errors.ts";
import { newId } from "../core/ids.ts";
import { jobStatuses } from "../core/job.ts";
import { formatReference } from "../core/reference.ts";
import { type BuildRow, findBuild, insertBuild, listBuilds } from "../db/builds.ts";
import { appendEvent } from "../db/events.ts";
import { insertJob } from "../db/jobs.ts";
import { together } from "../db/scope.ts";
import type { App, Request, Services } from "./context.ts";
import { idempotencyHeader, once } from "./idempotency.ts";
import { ownName } from "./images.ts";
import { checkOpenJobs, hasEnded, requestCancel, ShownError } from "./jobs.ts";
import { json, operation } from "./operation.ts";
import {
  count,
  flag,
  idParam,
  labelFilter,
  listOf,
  listSchema,
  notFound,
  pageOf,
  pageQuery,
  repeated,
} from "./parameters.ts";
import { preferHeader, settle } from "./waiting.ts";

const tag = "Builds";
export const buildParam = idParam("build");
const gib = 2 ** 30;

/** The media types of an uploaded context. How it is compressed is read from its bytes, not from here. */
const archiveTypes = [
  "application/x-tar",
  "application/tar",
  "application/gzip",
  "application/x-gzip",
  "application/tar+gzip",
  "application/zstd",
  "application/octet-stream",
] as const;

const Build = z
  .object({
    id: z.string().openapi({ example: "bld_0q3xr5kkp8wmz2v9d1hc" }),
    jobId: z.string().openapi({ example: "job_0q3xr5kkp8wmz2v9d1hc" }),
    status: z.enum(jobStatuses),
    tags: z.array(z.string()).openapi({ example: ["web:1"] }),
    image: z.object({ digest: z.string() }).nullable(),
    source: z.object({ kind: z.literal("archive"), digest: z.string(), sizeBytes: z.int() }),
    dockerfile: z.string().openapi({ example: "Dockerfile" }),
    target: z.string().nullable(),
    args: z.record(z.string(), z.string()),
    labels: z.record(z.string(), z.string()),
    steps: z.array(
      z
        .object({
          index: z.int(),
          stage: z.string(),
          instruction: z.string().openapi({ example: "RUN make" }),
          line: z.int(),
          status: z.enum(["pending", "running", "succeeded", "failed", "cancelled"]),
          cached: z.boolean(),
          durationMs: z.int().nullable(),
        })
        .openapi("BuildStep"),
    ),
    error: ShownError.nullable(),
    createdAt: z.iso.datetime(),
    startedAt: z.iso.datetime().nullable(),
    finishedAt: z.iso.datetime().nullable(),
  })
  .openapi("Build");

/** A path within the context. */
const innerPath = z
  .string()
  .min(1)
  .max(4_096)
  .refine((path) => !path.startsWith("/") && !path.split("/").includes(".."), "Must be a path within the context");

/** `NAME=VALUE`, several times, as an object. */
const pairs = (name: RegExp, what: string, description: string) =>
  repeated(
    z
      .string()
      .max(65_536)
      .refine((text) => name.test(text.split("=", 1)[0] ?? "") && text.includes("="), `Must be ${what}=VALUE`),
  )
    .transform((texts) =>
      Object.fromEntries(texts.map((text) => [text.slice(0, text.indexOf("=")), text.slice(text.indexOf("=") + 1)])),
    )
    .openapi({ type: "array", items: { type: "string" }, description });

const create = operation({
  method: "post",
  path: "/v1/builds",
  operationId: "createBuild",
  tag,
  summary: "Build an image from a tar of its context",
  description:
    "The body is the context as a tar, plain or compressed with gzip or zstd; the options are in the query. Answers at once; " +
    "`Prefer: wait=60` holds the answer until the build has ended. A Dockerfile that is wrong makes a `failed` build whose " +
    "`error` names the line. Git sources (a JSON body) are not supported yet.",
  request: {
    headers: preferHeader.extend(idempotencyHeader.shape),
    query: z.strictObject({
      tag: repeated(z.string().min(1).max(512)).openapi({
        type: "array",
        items: { type: "string" },
        description: "Names for the image.",
        example: ["web:1"],
      }),
      dockerfile: innerPath.default("Dockerfile").openapi({ description: "Its path within the context." }),
      target: z
        .string()
        .regex(/^[\w.-]{1,128}$/, "Must be a stage's name or number")
        .optional(),
      arg: pairs(/^[A-Za-z_]\w{0,254}$/, "NAME", "Build arguments, `NAME=VALUE`. The image's history shows them."),
      label: pairs(/^[\w./-]{1,255}$/, "KEY", "Labels of the image, `KEY=VALUE`."),
      platform: z
        .string()
        .regex(/^[a-z0-9]+\/[a-z0-9_]+(?:\/[a-z0-9.]+)?$/, "Must be OS/ARCHITECTURE")
        .optional()
        .openapi({ example: "linux/amd64" }),
      noCache: flag(false).openapi({ description: "Run every step, also those that were run before." }),
      pull: flag(false).openapi({ description: "Ask the registry again for base images that are there." }),
      cpus: z.coerce.number().min(0.01).max(512).default(2).openapi({ type: "number", description: "Cores." }),
      memory: count(16 * 2 ** 20, 4_096 * gib)
        .optional()
        .openapi({ type: "integer", default: 2 * gib, description: "Bytes." }),
      timeoutSeconds: count(1, 86_400).optional().openapi({ type: "integer", default: 1_800 }),
    }),
    body: {
      content: {
        "application/x-tar": { schema: z.string().openapi({ format: "binary" }) },
        ...Object.fromEntries(
          archiveTypes.slice(1).map((type) => [type, { schema: z.string().openapi({ format: "binary" }) }]),
        ),
        "application/json": {
          schema: z
            .object({ source: z.looseObject({ git: z.looseObject({ url: z.string() }) }) })
            .openapi("GitBuild", { description: "Not supported yet." }),
        },
      },
    },
  },
  responses: { 201: json(Build, "It has ended"), 202: json(Build, "It is queued or runs") },
  errors: [
    "invalid_reference",
    "invalid_context",
    "body_too_large",
    "quota_exceeded",
    "not_supported",
    "idempotency_key_reused",
  ],
});

const list = operation({
  method: "get",
  path: "/v1/builds",
  operationId: "listBuilds",
  tag,
  summary: "List builds, newest first",
  request: {
    query: z.strictObject({
      ...pageQuery,
      label: labelFilter,
      status: z.enum(jobStatuses).optional(),
      tag: z.string().max(512).optional().openapi({ example: "web:1" }),
    }),
  },
  responses: { 200: json(listSchema("BuildList", Build), "A page of builds") },
});

const get = operation({
  method: "get",
  path: "/v1/builds/{id}",
  operationId: "getBuild",
  tag,
  summary: "Get a build, or wait for its end",
  request: { params: buildParam, headers: preferHeader },
  responses: { 200: json(Build, "The build") },
  errors: ["not_found"],
});

const cancel = operation({
  method: "post",
  path: "/v1/builds/{id}/cancel",
  operationId: "cancelBuild",
  tag,
  summary: "Cancel a build",
  description: "What runs is killed and what it left is removed. One that has ended stays as it is.",
  request: { params: buildParam, headers: preferHeader.extend(idempotencyHeader.shape) },
  responses: { 200: json(Build, "It has ended"), 202: json(Build, "It is being cancelled") },
  errors: ["not_found", "idempotency_key_reused"],
});

function buildView(row: BuildRow): z.infer<typeof Build> {
  const { request, imageDigest, ...rest } = row;
  return {
    ...rest,
    image: imageDigest === null ? null : { digest: imageDigest },
    source: request.source,
    dockerfile: request.dockerfile,
    target: request.target ?? null,
    args: request.args,
    labels: request.labels,
  };
}

/** The build of the request. @throws BerthError `not_found` */
export async function requireBuild(services: Services, c: Request, id: string): Promise<BuildRow> {
  const row = await findBuild(services.sql, c.var.scope, id);
  if (row === null) throw notFound("build");
  return row;
}

/** Stores the body as a blob, as it comes. @throws BerthError `body_too_large`, `invalid_context` when it is empty. */
async function storeContext(services: Services, c: Request) {
  const maxBytes = services.limits.contextBytes;
  if (Number(c.req.header("content-length") ?? 0) > maxBytes) {
    throw new BerthError("body_too_large", `A build context has at most ${String(maxBytes)} bytes.`);
  }
  if (c.req.header("content-encoding") !== undefined) {
    throw new BerthError("unsupported_media_type", "Send a compressed tar as it is, without Content-Encoding.");
  }
  const { body } = c.req.raw;
  const empty = new BerthError("invalid_context", "The body is empty; a tar of the build context is expected.");
  if (body === null) throw empty;
  const stored = await services.blobs.put(Readable.fromWeb(body), { maxBytes });
  if (stored.sizeBytes === 0) throw empty;
  return stored;
}

export function addBuilds(app: App, services: Services): void {
  const { sql } = services;
  const waited = async (c: Request, id: string) => {
    const row = await settle(services, c, id, () => findBuild(sql, c.var.scope, id), hasEnded);
    if (row === null) throw notFound("build");
    return row;
  };

  app.openapi(create, async (c) => {
    if ((c.req.header("content-type") ?? "").startsWith("application/json")) {
      throw new BerthError("not_supported", "Git sources are not supported yet: send a tar of the context instead.");
    }
    const { projectId } = c.var.scope;
    const query = c.req.valid("query");
    const tags = query.tag.map((text) => formatReference(ownName(text, c.var.project.name)));
    const { digest, sizeBytes } = await storeContext(services, c);
    const request: BuildRequest = {
      source: { kind: "archive", digest, sizeBytes },
      dockerfile: query.dockerfile,
      ...(query.target === undefined ? {} : { target: query.target }),
      args: query.arg,
      tags,
      labels: query.label,
      ...(query.platform === undefined ? {} : { platform: query.platform }),
      noCache: query.noCache,
      pull: query.pull,
      limits: { cpus: query.cpus, memory: query.memory ?? 2 * gib, timeoutSeconds: query.timeoutSeconds ?? 1_800 },
    };
    const made = await once(
      services,
      c,
      async (tx) => {
        await checkOpenJobs(tx, projectId);
        const id = newId("build");
        const jobId = newId("job");
        await together([
          insertJob(tx, { id: jobId, projectId, kind: "build", subjectId: id, payload: {} }),
          insertBuild(tx, { id, projectId, jobId, request }),
          appendEvent(tx, { projectId, type: "build.queued", subjectId: id, data: { tags } }),
        ]);
        return { id };
      },
      { request: JSON.stringify(request) },
    );
    c.header("Location", `/v1/builds/${made.id}`);
    const row = await waited(c, made.id);
    return c.json(buildView(row), hasEnded(row) ? 201 : 202);
  });

  app.openapi(list, async (c) => {
    const query = c.req.valid("query");
    const page = pageOf(query);
    const filter = { labels: query.label, status: query.status, tag: query.tag };
    const rows = await listBuilds(sql, c.var.scope, filter, page);
    return c.json(
      listOf(page, rows, (row) => row.id, buildView),
      200,
    );
  });

  app.openapi(get, async (c) => c.json(buildView(await waited(c, c.req.valid("param").id)), 200));

  app.openapi(cancel, async (c) => {
    const { id } = c.req.valid("param");
    await once(services, c, async (tx) => {
      const build = await findBuild(tx, c.var.scope, id);
      if (build === null) throw notFound("build");
      if (!hasEnded(build)) await requestCancel(tx, c.var.scope.projectId, build.jobId, id);
      return { id };
    });
    const row = await waited(c, id);
    return c.json(buildView(row), hasEnded(row) ? 200 : 202);
  });
}
