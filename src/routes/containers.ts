import { z } from "@hono/zod-openapi";
import { containerStatuses } from "../core/container.ts";
import { BerthError } from "../core/errors.ts";
import { allows } from "../core/roles.ts";
import { type ContainerRow, findContainer, listContainers, lockContainer, want } from "../db/containers.ts";
import { appendEvent } from "../db/events.ts";
import { transact, wake } from "../db/scope.ts";
import { topics } from "../db/wakeups.ts";
import { createContainer } from "./container-create.ts";
import { Container, ContainerCreate } from "./container-schema.ts";
import { containerView } from "./container-view.ts";
import type { App, Request, Services } from "./context.ts";
import { idempotencyHeader } from "./idempotency.ts";
import { body, json, operation } from "./operation.ts";
import { flag, idParam, labelFilter, listOf, listSchema, notFound, pageOf, pageQuery } from "./parameters.ts";
import { preferHeader, settle } from "./waiting.ts";

const tag = "Containers";
export const containerParam = idParam("container", "id or name");

const create = operation({
  method: "post",
  path: "/v1/containers",
  operationId: "createContainer",
  tag,
  summary: "Create a container, and start it",
  description:
    "Answers at once; `Prefer: wait=30` holds the answer until the container runs, has ended or has failed. A command that " +
    "does not exist or an image that can't be pulled makes a `failed` container whose `reason` and `detail` say so.",
  request: { headers: preferHeader.extend(idempotencyHeader.shape), body: body(ContainerCreate) },
  responses: { 201: json(Container, "It has settled"), 202: json(Container, "It is on its way") },
  errors: [
    "invalid_reference",
    "image_not_found",
    "name_taken",
    "port_taken",
    "ports_exhausted",
    "quota_exceeded",
    "no_capacity",
    "invalid_state",
    "idempotency_key_reused",
  ],
});

const list = operation({
  method: "get",
  path: "/v1/containers",
  operationId: "listContainers",
  tag,
  summary: "List containers, newest first",
  request: {
    query: z.strictObject({
      ...pageQuery,
      label: labelFilter,
      name: z.string().max(63).optional(),
      status: z.enum(containerStatuses).optional(),
      hostId: z.string().max(64).optional(),
    }),
  },
  responses: { 200: json(listSchema("ContainerList", Container), "A page of containers") },
});

const get = operation({
  method: "get",
  path: "/v1/containers/{id}",
  operationId: "getContainer",
  tag,
  summary: "Get a container",
  request: { params: containerParam },
  responses: { 200: json(Container, "The container") },
  errors: ["not_found"],
});

const remove = operation({
  method: "delete",
  path: "/v1/containers/{id}",
  operationId: "deleteContainer",
  tag,
  summary: "Remove a container",
  description: "Its ports, writable layer and log go with it. With `force` it may be running; it is killed.",
  request: { params: containerParam, headers: preferHeader, query: z.strictObject({ force: flag(false) }) },
  responses: {
    202: json(Container, "It is being removed"),
    204: { description: "It is gone (with `Prefer: wait`)" },
  },
  errors: ["not_found", "invalid_state"],
});

/** The container as the client may see it. */
export function shown(c: Request, row: ContainerRow): z.infer<typeof Container> {
  return containerView(row, allows(c.var.principal.role, "deployer"));
}

/** The container of the request. @throws BerthError `not_found` */
export async function requireContainer(services: Services, c: Request, id: string): Promise<ContainerRow> {
  const row = await findContainer(services.sql, c.var.scope, id);
  if (row === null) throw notFound("container");
  return row;
}

export function addContainers(app: App, services: Services): void {
  const { sql } = services;

  app.openapi(create, async (c) => {
    const made = await createContainer(services, c, c.req.valid("json"));
    c.header("Location", `/v1/containers/${made.id}`);
    const read = () => findContainer(sql, c.var.scope, made.id);
    const row =
      c.req.header("prefer") === undefined ? null : await settle(services, c, made.id, read, (r) => r?.settled ?? true);
    return row === null ? c.json(made, 202) : c.json(shown(c, row), row.settled ? 201 : 202);
  });

  app.openapi(list, async (c) => {
    const query = c.req.valid("query");
    const page = pageOf(query);
    const filter = { labels: query.label, name: query.name, status: query.status, hostId: query.hostId };
    const rows = await listContainers(sql, c.var.scope, filter, page);
    return c.json(
      listOf(
        page,
        rows,
        (row) => row.id,
        (row) => shown(c, row),
      ),
      200,
    );
  });

  app.openapi(get, async (c) => c.json(shown(c, await requireContainer(services, c, c.req.valid("param").id)), 200));

  app.openapi(remove, async (c) => {
    const { scope } = c.var;
    const { force } = c.req.valid("query");
    const before = await requireContainer(services, c, c.req.valid("param").id);
    await transact(sql, scope, async (tx) => {
      const found = await lockContainer(tx, scope.projectId, before.id);
      if (found === null || found.wanted === "removed") return;
      // Read behind the lock: a start that came meanwhile counts.
      const status = (await findContainer(tx, scope, found.id))?.status ?? found.status;
      if (!force && ["starting", "running", "restarting", "paused", "stopping"].includes(status)) {
        throw new BerthError("invalid_state", `The container is ${status}; stop it first, or use force=true.`);
      }
      await want(tx, found.id, "removed", false);
      await appendEvent(tx, { projectId: scope.projectId, type: "container.removing", subjectId: found.id });
      await wake(tx, topics.host(found.hostId));
    });
    const read = () => findContainer(sql, scope, before.id);
    const row = await settle(services, c, before.id, read, (state) => state === null);
    return row === null ? c.body(null, 204) : c.json(shown(c, row), 202);
  });
}
