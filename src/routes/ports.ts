import { z } from "@hono/zod-openapi";
import { BerthError } from "../core/errors.ts";
import { checkQuota } from "../core/quota.ts";
import { findContainer, lockContainer } from "../db/containers.ts";
import { appendEvent, lastEvent } from "../db/events.ts";
import { listHosts } from "../db/hosts.ts";
import {
  findPort,
  insertPort,
  listPorts,
  newPort,
  PortRefused,
  type PortRow,
  portError,
  portReserved,
  removePort,
  touchContainer,
} from "../db/ports.ts";
import { readQuota, readUsage } from "../db/projects.ts";
import { lock, together, transact, wake } from "../db/scope.ts";
import { topics } from "../db/wakeups.ts";
import type { App, Services } from "./context.ts";
import { idempotencyHeader, once } from "./idempotency.ts";
import { body, json, operation } from "./operation.ts";
import { count, idParam, listOf, listSchema, notFound, pageOf, pageQuery } from "./parameters.ts";
import { Port, PortCreate, portView, publishRequest } from "./port-schema.ts";
import { preferHeader, settle } from "./waiting.ts";

const tag = "Ports";
const params = idParam("port");

const create = operation({
  method: "post",
  path: "/v1/ports",
  operationId: "createPort",
  tag,
  summary: "Publish a port of a container",
  description: "Also of one that runs; takes effect within milliseconds and survives restarts.",
  request: { headers: preferHeader.extend(idempotencyHeader.shape), body: body(PortCreate) },
  responses: {
    201: json(Port, "It is active, or will be when the container runs"),
    202: json(Port, "It is on its way"),
  },
  errors: [
    "not_found",
    "invalid_state",
    "port_taken",
    "ports_exhausted",
    "quota_exceeded",
    "host_port_in_use",
    "idempotency_key_reused",
  ],
});

const list = operation({
  method: "get",
  path: "/v1/ports",
  operationId: "listPorts",
  tag,
  summary: "List published ports, newest first",
  request: {
    query: z.strictObject({
      ...pageQuery,
      containerId: z.string().max(64).optional(),
      hostPort: count(1, 65_535).optional(),
    }),
  },
  responses: { 200: json(listSchema("PortList", Port), "A page of ports") },
});

const get = operation({
  method: "get",
  path: "/v1/ports/{id}",
  operationId: "getPort",
  tag,
  summary: "Get a published port",
  request: { params },
  responses: { 200: json(Port, "The port") },
  errors: ["not_found"],
});

const remove = operation({
  method: "delete",
  path: "/v1/ports/{id}",
  operationId: "deletePort",
  tag,
  summary: "Take a published port away",
  request: { params, headers: preferHeader },
  responses: {
    202: json(Port, "It is being taken away"),
    204: { description: "It is gone (with `Prefer: wait`)" },
  },
  errors: ["not_found"],
});

/** A port of a container that does not run has nothing to wait for. */
const settled = (row: PortRow | null) => row === null || row.status === "active" || !row.containerRunning;

export function addPorts(app: App, services: Services): void {
  const { sql } = services;

  app.openapi(create, async (c) => {
    const { scope } = c.var;
    const { containerId, ...port } = c.req.valid("json");
    const made = await once(services, c, async (tx) => {
      const [, container, quota, usage] = await together([
        lock(tx, `quota:${scope.projectId}`),
        lockContainer(tx, scope.projectId, containerId),
        readQuota(tx, scope),
        readUsage(tx, scope),
      ]);
      if (container === null || quota === null) throw notFound("container");
      if (container.wanted === "removed") throw new BerthError("invalid_state", "The container is being removed.");
      checkQuota(quota, usage, { ports: 1 });
      const { hostId } = container;
      const [host] = await listHosts(tx, hostId);
      if (port.hostPort !== undefined && host?.reservedPorts.includes(port.hostPort) === true) {
        throw portReserved(port.hostPort);
      }
      const row = newPort(publishRequest(port), {
        projectId: scope.projectId,
        containerId: container.id,
        hostId,
      });
      const [, , , , , inserted] = await together([
        lock(tx, `host:${hostId}`),
        insertPort(tx, row),
        touchContainer(tx, container.id),
        appendEvent(tx, {
          projectId: scope.projectId,
          type: "port.created",
          subjectId: row.id,
          data: { containerId: container.id, containerPort: port.containerPort },
        }),
        wake(tx, topics.host(hostId)),
        findPort(tx, scope, row.id),
      ]);
      if (inserted === null) throw new Error("the port that was inserted can't be read");
      return portView(inserted);
    }).catch(async (error: unknown) => {
      throw error instanceof PortRefused ? await portError(sql, scope, error) : error;
    });
    c.header("Location", `/v1/ports/${made.id}`);
    if (c.req.header("prefer") === undefined) return c.json(made, 202);
    const row = await settle(services, c, made.id, () => findPort(sql, scope, made.id), settled);
    if (row !== null) return c.json(portView(row), settled(row) ? 201 : 202);
    const refused = await lastEvent(sql, scope, "port.refused", made.id);
    const detail = refused?.data.detail;
    throw new BerthError(
      "host_port_in_use",
      typeof detail === "string" ? detail : `A process of the host uses port ${String(made.hostPort)}.`,
    );
  });

  app.openapi(list, async (c) => {
    const query = c.req.valid("query");
    const { scope } = c.var;
    const page = pageOf(query);
    const container = query.containerId === undefined ? undefined : await findContainer(sql, scope, query.containerId);
    const filter = {
      containerId: container === undefined ? undefined : (container?.id ?? ""),
      hostPort: query.hostPort,
    };
    const rows = await listPorts(sql, scope, filter, page);
    return c.json(
      listOf(page, rows, (row) => row.id, portView),
      200,
    );
  });

  app.openapi(get, async (c) => {
    const row = await findPort(sql, c.var.scope, c.req.valid("param").id);
    if (row === null) throw notFound("port");
    return c.json(portView(row), 200);
  });

  app.openapi(remove, async (c) => {
    const { scope } = c.var;
    const { id } = c.req.valid("param");
    await transact(sql, scope, async (tx) => {
      const removed = await removePort(tx, scope.projectId, id);
      if (removed === null) throw notFound("port");
      await together([
        touchContainer(tx, removed.containerId),
        appendEvent(tx, { projectId: scope.projectId, type: "port.removing", subjectId: id }),
        wake(tx, topics.host(removed.hostId)),
      ]);
    });
    const row = await settle(
      services,
      c,
      id,
      () => findPort(sql, scope, id),
      (state) => state === null,
    );
    return row === null ? c.body(null, 204) : c.json(portView(row), 202);
  });
}
