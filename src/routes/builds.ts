import { Readable } from "node:stream";
import { z } from "@hono/zod-openapi";
import type { BuildRequest } from "../core/build-request.ts";
import { BerthError } from "../core/errors.ts";
import { newId } from "../core/ids.ts";
import { type BuildPayload, jobSealPurpose, jobStatuses } from "../core/job.ts";
import { seal } from "../core/keys.ts";
import { formatReference } from "../core/reference.ts";
import { type BuildRow, findBuild, insertBuild, listBuilds } from "../db/builds.ts";
import { appendEvent } from "../db/events.ts";
import { checkOpenJobs, insertJob } from "../db/jobs.ts";
import { together } from "../db/scope.ts";
import { readRegistryHeader, registryHeader } from "./build-registries.ts";
import {
  ArchiveOptions,
  archiveBodies,
  archiveOptions,
  Build,
  buildView,
  RemoteBuild,
  remoteRequest,
} from "./build-schema.ts";
import { readSecretsHeader, secretsHeader } from "./build-secrets.ts";
import type { App, Request, Services } from "./context.ts";
import { idempotencyHeader, once } from "./idempotency.ts";
import { ownName } from "./images.ts";
import { hasEnded, requestCancel } from "./jobs.ts";
import { json, operation } from "./operation.ts";
import { idParam, labelFilter, listOf, listSchema, notFound, pageOf, pageQuery } from "./parameters.ts";
import { Uploads } from "./uploads.ts";
import { preferHeader, settle } from "./waiting.ts";

const tag = "Builds";
export const buildParam = idParam("build");

const create = operation({
  method: "post",
  path: "/v1/builds",
  operationId: "createBuild",
  tag,
  summary: "Build an image from a tar of its context, or from a git repository",
  description:
    "Either the body is the context as a tar, plain or compressed with gzip or zstd, and the options are in the query; or the " +
    "body is JSON, with a git repository as the source. Answers at once; `Prefer: wait=60` holds the answer until the build has " +
    "ended. A Dockerfile that is wrong makes a `failed` build whose `error` names the line. Of a repository one commit is " +
    "fetched, without its submodules. A repository that can't be had makes a `failed` build too: `repository_not_found`, " +
    "`ref_not_found`, `repository_denied`, `git_auth_failed`, `repository_unreachable`, `address_refused`.",
  request: {
    headers: preferHeader.extend(idempotencyHeader.shape).extend(secretsHeader.shape).extend(registryHeader.shape),
    query: ArchiveOptions,
    body: {
      content: {
        ...archiveBodies,
        "application/json": { schema: RemoteBuild },
      },
    },
  },
  responses: { 201: json(Build, "It has ended"), 202: json(Build, "It is queued or runs") },
  errors: [
    "invalid_reference",
    "invalid_context",
    "body_too_large",
    "quota_exceeded",
    "idempotency_key_reused",
    "blob_store_error",
    "disk_full",
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
      sourceId: z.string().max(64).optional().openapi({ description: "Only those that this source began." }),
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
  const uploads = new Uploads(services.limits.uploads);
  const store = (c: Request) => uploads.store(c.var.scope.projectId, () => storeContext(services, c));
  const waited = async (c: Request, id: string) => {
    const row = await settle(services, c, id, () => findBuild(sql, c.var.scope, id), hasEnded);
    if (row === null) throw notFound("build");
    return row;
  };

  app.openapi(create, async (c) => {
    const { projectId } = c.var.scope;
    const isRemote = (c.req.header("content-type") ?? "").toLowerCase().startsWith("application/json");
    const body = c.req.valid("json");
    const remote = isRemote && typeof body !== "string" ? remoteRequest(body, c.req.query()) : null;
    const asked = remote?.request ?? archiveOptions(c.req.valid("query"));
    const tags = asked.tags.map((text) => formatReference(ownName(text, c.var.project.name)));
    const source = remote?.request.source ?? { kind: "archive" as const, ...(await store(c)) };
    const request: BuildRequest = { ...asked, tags, source };
    const auth = remote?.auth;
    const secrets = remote?.secrets ?? readSecretsHeader(c.req.header("berth-build-secrets"));
    const registryAuth = remote?.registryAuth ?? readRegistryHeader(c.req.header("berth-registry-auth"));
    const hasSecrets = Object.keys(secrets).length > 0;
    const hasUsers = Object.keys(registryAuth).length > 0;
    const isSecret = auth !== undefined || hasSecrets || hasUsers;
    const made = await once(
      services,
      c,
      async (tx) => {
        const id = newId("build");
        const jobId = newId("job");
        const purpose = jobSealPurpose({ kind: "build", id: jobId });
        const sealed = (value: object) => seal(services.secretKey, purpose, JSON.stringify(value));
        const payload: BuildPayload = {
          ...(auth === undefined ? {} : { auth: sealed(auth) }),
          ...(hasSecrets ? { secrets: sealed(secrets) } : {}),
          ...(hasUsers ? { registryAuth: sealed(registryAuth) } : {}),
        };
        await together([
          checkOpenJobs(tx, projectId),
          insertJob(tx, { id: jobId, projectId, kind: "build", subjectId: id, payload: { ...payload } }),
          insertBuild(tx, { id, projectId, jobId, request }),
          appendEvent(tx, { projectId, type: "build.queued", subjectId: id, data: { tags } }),
        ]);
        return { id };
      },
      { request: JSON.stringify(isSecret ? [request, auth, secrets, registryAuth] : request) },
    );
    c.header("Location", `/v1/builds/${made.id}`);
    const row = await waited(c, made.id);
    return c.json(buildView(row), hasEnded(row) ? 201 : 202);
  });

  app.openapi(list, async (c) => {
    const query = c.req.valid("query");
    const page = pageOf(query);
    const filter = { labels: query.label, status: query.status, tag: query.tag, sourceId: query.sourceId };
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
