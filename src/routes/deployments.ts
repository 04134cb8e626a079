import { z } from "@hono/zod-openapi";
import { deploymentStatuses } from "../core/deploy.ts";
import { type DeploymentRow, findDeployment, listDeployments } from "../db/deployments.ts";
import { findSource } from "../db/sources.ts";
import type { App, Services } from "./context.ts";
import { json, operation } from "./operation.ts";
import { idParam, listOf, listSchema, notFound, pageOf, pageQuery } from "./parameters.ts";
import { Port, portView } from "./port-schema.ts";
import { preferHeader, settle } from "./waiting.ts";

const tag = "Deployments";

export const Deployment = z
  .object({
    id: z.string().openapi({ example: "dep_0q3xr5kkp8wmz2v9d1hc" }),
    sourceId: z.string().openapi({ example: "src_0q3xr5kkp8wmz2v9d1hc" }),
    buildId: z.string().nullable().openapi({ example: "bld_0q3xr5kkp8wmz2v9d1hc" }),
    jobId: z.string().nullable().openapi({ description: "Cancelling it ends a deployment that has not switched." }),
    image: z.object({ digest: z.string() }),
    status: z.enum(deploymentStatuses).openapi({
      description:
        "`starting`: its container starts beside the one before; `switching`: that one works, and the ports are led to it.",
    }),
    containerId: z.string().nullable().openapi({ description: "null: not made yet, or gone since." }),
    previousContainerId: z
      .string()
      .nullable()
      .openapi({ description: "Whose ports it took over, while that is there." }),
    ports: z.array(Port).openapi({ description: "Its container's." }),
    reason: z
      .string()
      .nullable()
      .openapi({
        description:
          "A code, when it failed, such as `not_healthy`; the container before goes on serving. Of one that succeeded: " +
          "`host_unavailable`, when the host went away with the switch and leads the ports there when it is back.",
        example: null,
      }),
    detail: z.string().nullable().openapi({ description: "The reason in words, with the last lines of the log." }),
    createdAt: z.iso.datetime(),
    finishedAt: z.iso.datetime().nullable(),
  })
  .openapi("Deployment");

/** A deployment as clients see it. */
export function deploymentView(row: DeploymentRow): z.infer<typeof Deployment> {
  const { imageDigest, ports, ...rest } = row;
  return {
    ...rest,
    image: { digest: imageDigest },
    ports: ports.map((port) => portView({ ...port, containerId: row.containerId ?? "" })),
  };
}

/** Whether it has come to its end. */
export const hasSettled = (row: Pick<DeploymentRow, "status"> | null) =>
  row === null || row.status === "succeeded" || row.status === "failed";

const list = operation({
  method: "get",
  path: "/v1/deployments",
  operationId: "listDeployments",
  tag,
  summary: "List deployments, newest first",
  request: {
    query: z.strictObject({
      ...pageQuery,
      source: z.string().max(64).optional().openapi({ description: "Only of this source, by id or name." }),
      buildId: z.string().max(64).optional(),
      status: z.enum(deploymentStatuses).optional(),
    }),
  },
  responses: { 200: json(listSchema("DeploymentList", Deployment), "A page of deployments") },
});

const get = operation({
  method: "get",
  path: "/v1/deployments/{id}",
  operationId: "getDeployment",
  tag,
  summary: "Get a deployment, or wait for its end",
  description:
    "A build of a source that has `deploy` becomes one when it succeeds: its container starts beside the one before, on the " +
    "same host; when it works (its health check passes, by default that its first TCP port takes connections) the ports are " +
    "led to it, without a refused connection, and the one before is stopped and removed. One that never works fails, is " +
    "stopped, and kept for its log until the source's next deployment. A newer one takes the place of one that has not " +
    "switched.",
  request: { params: idParam("deployment"), headers: preferHeader },
  responses: { 200: json(Deployment, "The deployment") },
  errors: ["not_found"],
});

export function addDeployments(app: App, services: Services): void {
  const { sql } = services;

  app.openapi(list, async (c) => {
    const query = c.req.valid("query");
    const { scope } = c.var;
    const page = pageOf(query);
    const source = query.source === undefined ? undefined : await findSource(sql, scope, query.source);
    const filter = {
      sourceId: source === undefined ? undefined : (source?.id ?? ""),
      buildId: query.buildId,
      status: query.status,
    };
    const rows = await listDeployments(sql, scope, filter, page);
    return c.json(
      listOf(page, rows, (row) => row.id, deploymentView),
      200,
    );
  });

  app.openapi(get, async (c) => {
    const { id } = c.req.valid("param");
    const row = await settle(services, c, id, () => findDeployment(sql, c.var.scope, id), hasSettled);
    if (row === null) throw notFound("deployment");
    return c.json(deploymentView(row), 200);
  });
}
