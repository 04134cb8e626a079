import { randomBytes } from "node:crypto";
import { z } from "@hono/zod-openapi";
import { BerthError } from "../core/errors.ts";
import { isId, newId } from "../core/ids.ts";
import { open } from "../core/keys.ts";
import { reactionTo, readWebhook, type WebhookEvent } from "../core/webhook-event.ts";
import { isSigned, type WebhookRequest } from "../core/webhook-signature.ts";
import { findDelivery, type Notice, recordDelivery } from "../db/deliveries.ts";
import { transact } from "../db/scope.ts";
import { findWebhookSource } from "../db/sources.ts";
import type { App, Services } from "./context.ts";
import { json, operation } from "./operation.ts";
import { RawBodies } from "./raw-body.ts";
import { Delivery, deliveryView } from "./source-schema.ts";

/** A push of thousands of commits has some megabytes. */
const bodyLimits = { maxBytes: 4 * 2 ** 20, maxBytesAtOnce: 64 * 2 ** 20, maxMs: 15_000 };

const receive = operation({
  method: "post",
  path: "/v1/webhooks/{sourceId}",
  operationId: "receiveWebhook",
  tag: "Sources",
  summary: "Tell a source that its repository has changed",
  description:
    "For the provider, or for whatever calls it with the source's secret: signed in the provider's own way; of `generic` sources " +
    "with `Authorization: Bearer SECRET`, or as GitHub signs (`X-Hub-Signature-256`). The body is a hint only: the repository " +
    "is read again, and built when it is at another commit than the one that was built last. Of a `generic` source it is " +
    '`{"ref": "refs/heads/main"}`, or anything.',
  request: {
    params: z.object({ sourceId: z.string().openapi({ param: { name: "sourceId", in: "path" }, example: "src_…" }) }),
    body: { content: { "*/*": { schema: z.string().openapi({ format: "binary" }) } } },
  },
  responses: {
    202: json(
      z.object({ deliveries: z.array(Delivery).openapi({ description: "One of each ref." }) }).openapi("Received"),
      "It is recorded",
    ),
  },
  errors: ["invalid_signature", "body_too_large", "too_many_requests"],
});

/** Stands in for a source that does not exist, so that its refusal looks and lasts as any other. */
const nobody = { provider: "github", secret: randomBytes(32).toString("base64") } as const;

export function addWebhooks(app: App, services: Services): void {
  const { sql, secretKey } = services;
  const bodies = new RawBodies(bodyLimits);

  app.openapi(receive, async (c) => {
    const { sourceId } = c.req.valid("param");
    const request: WebhookRequest = { headers: c.req.header(), body: await bodies.read(c.req.raw) };
    const found = isId("source", sourceId) ? await findWebhookSource(sql, sourceId) : null;
    const { provider, secret } =
      found === null ? nobody : { ...found, secret: open(secretKey, `secret:${sourceId}`, found.secretSealed) };
    const signed = isSigned(provider, secret, request, Date.now() / 1000);
    if (found === null || !signed) {
      throw new BerthError("invalid_signature", "There is no such source, or this is not signed with its secret.");
    }
    const { projectId } = found;
    const source = { id: sourceId, projectId, secretKey };
    const notices = noticesOf(readWebhook(provider, request), found.branches);
    const deliveries = await transact(sql, { projectId }, async (tx) => {
      const rows = [];
      for (const notice of notices) {
        const id = await recordDelivery(tx, source, notice);
        rows.push(await findDelivery(tx, { projectId }, sourceId, id));
      }
      return rows.filter((row) => row !== null);
    });
    return c.json({ deliveries: deliveries.map(deliveryView) }, 202);
  });
}

/** What is recorded of an event: one delivery of each ref, or one that is ignored. */
function noticesOf(event: WebhookEvent, branches: readonly string[]): Notice[] {
  const reaction = reactionTo(event, branches);
  const told = { key: event.key ?? newId("delivery"), event: event.name };
  return "ignored" in reaction
    ? [{ ...told, about: reaction }]
    : reaction.refs.toSorted().map((ref) => ({ ...told, about: { ref } }));
}
