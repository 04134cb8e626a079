import { z } from "@hono/zod-openapi";
import { BerthError } from "../core/errors.ts";
import { newId } from "../core/ids.ts";
import { projectReference } from "../core/image-choice.ts";
import { jobSealPurpose, type PullPayload, type PushPayload } from "../core/job.ts";
import { seal } from "../core/keys.ts";
import {
  formatReference,
  hubReference,
  type PushDestination,
  parsePushDestination,
  repositoryName,
} from "../core/reference.ts";
import { appendEvent } from "../db/events.ts";
import { findImage, knownImage } from "../db/images.ts";
import { checkOpenJobs, findJob, insertJob } from "../db/jobs.ts";
import type { Tx } from "../db/scope.ts";
import type { App, Request, Services } from "./context.ts";
import { idempotencyHeader, once } from "./idempotency.ts";
import { type NamedImage, noImage, Reference, resolveImage } from "./images.ts";
import { hasEnded, Job, jobView } from "./jobs.ts";
import { body, json, operation } from "./operation.ts";
import { notFound } from "./parameters.ts";
import { invalidRequest } from "./problem.ts";
import { preferHeader, settle } from "./waiting.ts";

const tag = "Images";

const RegistryAuth = z
  .strictObject({ username: z.string().min(1).max(1_024), password: z.string().min(1).max(65_536) })
  .optional()
  .openapi({ description: "For this transfer only; kept encrypted until it has ended." });

const pull = operation({
  method: "post",
  path: "/v1/images/pull",
  operationId: "pullImage",
  tag,
  summary: "Pull an image from a registry",
  description:
    "A job; its `result` counts the layers and bytes that were transferred and those that were there already.",
  request: {
    headers: preferHeader.extend(idempotencyHeader.shape),
    body: body(
      z
        .strictObject({
          reference: Reference.openapi({ example: "debian:12" }),
          platform: z
            .string()
            .regex(/^[a-z0-9]+\/[a-z0-9_]+(?:\/[a-z0-9.]+)?$/, "Must be OS/ARCHITECTURE")
            .optional()
            .openapi({ example: "linux/amd64" }),
          auth: RegistryAuth,
        })
        .openapi("ImagePull"),
    ),
  },
  responses: { 200: json(Job, "It has ended"), 202: json(Job, "It is queued") },
  errors: ["invalid_reference", "image_not_found", "quota_exceeded", "idempotency_key_reused"],
});

const push = operation({
  method: "post",
  path: "/v1/images/push",
  operationId: "pushImage",
  tag,
  summary: "Publish an image to a registry",
  description:
    "A job; only what the registry lacks is sent. Its `result` counts the layers and bytes that were transferred and the " +
    "layers that the registry had already, in this or another of its repositories.",
  request: {
    headers: preferHeader.extend(idempotencyHeader.shape),
    body: body(
      z
        .strictObject({
          reference: Reference,
          destination: Reference.optional().openapi({
            description: "Registry, repository and tag; without it where the image was pulled from.",
            example: "registry.example.com/team/web:1",
          }),
          auth: RegistryAuth,
        })
        .openapi("ImagePush"),
    ),
  },
  responses: { 200: json(Job, "It has ended"), 202: json(Job, "It is queued") },
  errors: ["invalid_reference", "image_not_found", "quota_exceeded", "idempotency_key_reused"],
});

export function addImageTransfers(app: App, services: Services): void {
  app.openapi(pull, async (c) => {
    const { scope, project } = c.var;
    const asked = c.req.valid("json");
    const reference = projectReference(asked.reference, project.name);
    const made = await once(services, c, async (tx) => {
      const known = await knownImage(tx, scope, reference);
      if (known.own) {
        const name = repositoryName(reference);
        throw known.ownDigest === null
          ? noImage(formatReference(reference))
          : new BerthError("invalid_reference", `${name} is the project's own repository; there is nothing to pull.`);
      }
      const payload: PullPayload = {
        reference: formatReference(hubReference(reference)),
        ...(asked.platform === undefined ? {} : { platform: asked.platform }),
      };
      return queue(tx, scope.projectId, { kind: "pull", payload }, asked.auth);
    });
    c.header("Location", `/v1/jobs/${made.id}`);
    const row = await transferred(c, made.id);
    return c.json(jobView(row), hasEnded(row) ? 200 : 202);
  });

  app.openapi(push, async (c) => {
    const { scope } = c.var;
    const asked = c.req.valid("json");
    const made = await once(services, c, async (tx) => {
      const named = await resolveImage(tx, c, asked.reference);
      if ((await findImage(tx, scope, named.digest)) === null) throw noImage(asked.reference);
      const payload: PushPayload = {
        reference: named.reference === null ? named.digest : formatReference(named.reference),
        digest: named.digest,
        destination: formatReference(pushDestination(asked.destination, named)),
      };
      return queue(tx, scope.projectId, { kind: "push", payload }, asked.auth);
    });
    c.header("Location", `/v1/jobs/${made.id}`);
    const row = await transferred(c, made.id);
    return c.json(jobView(row), hasEnded(row) ? 200 : 202);
  });

  /** Waits as long as the client prefers. */
  async function transferred(c: Request, id: string) {
    const row = await settle(services, c, id, () => findJob(services.sql, c.var.scope, id), hasEnded);
    if (row === null) throw notFound("job");
    return row;
  }

  /** Queues the job with its credentials sealed for it alone. */
  async function queue(
    tx: Tx,
    projectId: string,
    transfer: { kind: "pull"; payload: PullPayload } | { kind: "push"; payload: PushPayload },
    auth: z.infer<typeof RegistryAuth>,
  ): Promise<{ id: string }> {
    await checkOpenJobs(tx, projectId);
    const { kind } = transfer;
    const id = newId("job");
    const purpose = jobSealPurpose({ kind, id });
    const sealed = auth === undefined ? {} : { auth: seal(services.secretKey, purpose, JSON.stringify(auth)) };
    await insertJob(tx, { id, projectId, kind, subjectId: null, payload: { ...transfer.payload, ...sealed } });
    await appendEvent(tx, { projectId, type: `${kind}.queued`, subjectId: id, data: { ...transfer.payload } });
    return { id };
  }
}

/** Where a push goes. @throws BerthError `invalid_request`, naming the field. */
function pushDestination(asked: string | undefined, named: NamedImage): PushDestination {
  try {
    if (asked !== undefined) return parsePushDestination(asked);
    if (named.reference !== null && named.reference.registry !== null) {
      return parsePushDestination(formatReference(named.reference));
    }
  } catch (error) {
    const detail = error instanceof BerthError ? error.message : "is not a reference.";
    throw invalidRequest([{ pointer: "/destination", detail }]);
  }
  const detail = "must be given, such as registry.example.com/team/web:1, as the image's name has no registry.";
  throw invalidRequest([{ pointer: "/destination", detail }]);
}
