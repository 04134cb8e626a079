import { z } from "@hono/zod-openapi";
import { BerthError } from "../core/errors.ts";
import { idPrefixes, isId, newId } from "../core/ids.ts";
import { trackedRefs } from "../core/source.ts";
import { attachRead, type DeliveryRow, findDelivery, listDeliveries, recordDelivery } from "../db/deliveries.ts";
import { appendEvent } from "../db/events.ts";
import type { SourceRow } from "../db/sources.ts";
import type { App, Request, Services } from "./context.ts";
import { idempotencyHeader, once } from "./idempotency.ts";
import { json, operation } from "./operation.ts";
import { listOf, listSchema, notFound, pageOf, pageQuery } from "./parameters.ts";
import { invalidRequest } from "./problem.ts";
import { Delivery, deliveryView } from "./source-schema.ts";
import { requireSource, sourceParam } from "./sources.ts";
import { preferHeader, settle } from "./waiting.ts";

const tag = "Sources";

const deliveryParam = sourceParam.extend({
  deliveryId: z
    .string()
    .refine((text) => isId("delivery", text))
    .openapi({
      param: { name: "deliveryId", in: "path" },
      description: "The delivery's id.",
      example: `${idPrefixes.delivery}_0q3xr5kkp8wmz2v9d1hc`,
    }),
});

const list = operation({
  method: "get",
  path: "/v1/sources/{id}/deliveries",
  operationId: "listDeliveries",
  tag,
  summary: "List what a source was told, newest first",
  request: { params: sourceParam, query: z.strictObject(pageQuery) },
  responses: { 200: json(listSchema("DeliveryList", Delivery), "A page of deliveries") },
  errors: ["not_found"],
});

const get = operation({
  method: "get",
  path: "/v1/sources/{id}/deliveries/{deliveryId}",
  operationId: "getDelivery",
  tag,
  summary: "Get a delivery, or wait for what becomes of it",
  request: { params: deliveryParam, headers: preferHeader },
  responses: { 200: json(Delivery, "The delivery") },
  errors: ["not_found"],
});

const redeliver = operation({
  method: "post",
  path: "/v1/sources/{id}/deliveries/{deliveryId}/redeliver",
  operationId: "redeliverDelivery",
  tag,
  summary: "Act on a delivery once more",
  description:
    "Its ref is read again and built when it is at another commit than the one that was built last. `Prefer: wait=60` holds the " +
    "answer until that has ended.",
  request: { params: deliveryParam, headers: preferHeader.extend(idempotencyHeader.shape) },
  responses: { 200: json(Delivery, "It has ended"), 202: json(Delivery, "It is on its way") },
  errors: ["not_found", "invalid_state", "idempotency_key_reused"],
});

const build = operation({
  method: "post",
  path: "/v1/sources/{id}/build",
  operationId: "buildSource",
  tag,
  summary: "Build a source now, also when it has not changed",
  request: {
    params: sourceParam,
    headers: preferHeader.extend(idempotencyHeader.shape),
    body: {
      content: {
        "application/json": {
          schema: z
            .strictObject({ branch: z.string().max(255).optional() })
            .openapi("SourceBuildNow", { description: "By default the first branch that the source builds." }),
        },
      },
    },
  },
  responses: { 200: json(Delivery, "It has ended"), 202: json(Delivery, "It is on its way") },
  errors: ["not_found", "invalid_state", "idempotency_key_reused"],
});

/** Whether nothing more will become of a delivery. */
const isOver = (row: DeliveryRow | null) => row === null || !["received", "building"].includes(row.status);

export function addDeliveries(app: App, services: Services): void {
  const { sql, secretKey } = services;

  const waited = async (c: Request, sourceId: string, id: string) => {
    const row = await settle(services, c, id, () => findDelivery(sql, c.var.scope, sourceId, id), isOver);
    if (row === null) throw notFound("delivery");
    return row;
  };
  const asked = async (c: Request, sourceId: string, id: string) => {
    c.header("Location", `/v1/sources/${sourceId}/deliveries/${id}`);
    const row = await waited(c, sourceId, id);
    return c.json(deliveryView(row), isOver(row) ? 200 : 202);
  };
  const noticed = ({ id }: SourceRow, c: Request) => ({ id, projectId: c.var.scope.projectId, secretKey });

  app.openapi(list, async (c) => {
    const source = await requireSource(services, c, c.req.valid("param").id);
    const page = pageOf(c.req.valid("query"));
    const rows = await listDeliveries(sql, c.var.scope, source.id, page);
    return c.json(
      listOf(page, rows, (row) => row.id, deliveryView),
      200,
    );
  });

  app.openapi(get, async (c) => {
    const { id, deliveryId } = c.req.valid("param");
    const source = await requireSource(services, c, id);
    return c.json(deliveryView(await waited(c, source.id, deliveryId)), 200);
  });

  app.openapi(redeliver, async (c) => {
    const { id: sourceId, deliveryId } = c.req.valid("param");
    const source = await requireSource(services, c, sourceId);
    const made = await once(services, c, async (tx) => {
      const row = await findDelivery(tx, c.var.scope, source.id, deliveryId);
      if (row === null) throw notFound("delivery");
      const { ref } = row;
      if (ref === null) throw new BerthError("invalid_state", `There is nothing to do: ${row.detail ?? row.event}`);
      await attachRead(tx, noticed(source, c), row.id, { ref });
      return { id: row.id };
    });
    return asked(c, source.id, made.id);
  });

  app.openapi(build, async (c) => {
    const source = await requireSource(services, c, c.req.valid("param").id);
    if (source.url === null) throw new BerthError("invalid_state", "The source builds what is pushed to it.");
    const { projectId } = c.var.scope;
    const ref = askedRef(source, c.req.valid("json").branch);
    const made = await once(services, c, async (tx) => {
      const notice = { key: newId("delivery"), event: "manual", about: { ref, again: true as const } };
      const id = await recordDelivery(tx, noticed(source, c), notice);
      await appendEvent(tx, { projectId, type: "source.build_requested", subjectId: source.id, data: { ref } });
      return { id };
    });
    return asked(c, source.id, made.id);
  });
}

/** @throws BerthError `invalid_request` for a branch that the source does not build */
function askedRef(source: SourceRow, branch: string | undefined): string {
  const refs = trackedRefs(source.branches);
  const ref = branch === undefined ? refs[0] : refs.find((each) => each === `refs/heads/${branch}`);
  if (ref !== undefined) return ref;
  const known = source.branches.length === 0 ? "the default branch only" : source.branches.join(", ");
  throw invalidRequest([{ pointer: "/branch", detail: `The source builds ${known}.` }]);
}
