import { z } from "@hono/zod-openapi";
import { type HostRow, listHosts, setHostState } from "../db/hosts.ts";
import type { App, Services } from "./context.ts";
import { json, operation } from "./operation.ts";
import { idParam, listSchema, notFound } from "./parameters.ts";
import type { OperationId } from "./permissions.ts";

const tag = "Hosts";
const params = idParam("host");

const Room = { cpus: z.number(), memory: z.int(), disk: z.int() };

const Host = z
  .object({
    id: z.string().openapi({ example: "hst_0q3xr5kkp8wmz2v9d1hc" }),
    name: z.string().openapi({ example: "worker-1" }),
    state: z.enum(["active", "draining", "gone"]),
    alive: z.boolean().openapi({ description: "Whether its worker was heard of in the last 30 seconds." }),
    address: z.string().openapi({ description: "Where clients reach published ports.", example: "203.0.113.5" }),
    ...Room,
    used: z.object({ ...Room, containers: z.int() }).openapi({ description: "What all its containers were promised." }),
    portRange: z.object({ first: z.int(), last: z.int() }),
    heartbeatAt: z.iso.datetime(),
    createdAt: z.iso.datetime(),
  })
  .openapi("Host");

const list = operation({
  method: "get",
  path: "/v1/hosts",
  operationId: "listHosts",
  tag,
  summary: "List hosts",
  responses: { 200: json(listSchema("HostList", Host), "All hosts") },
});

const get = operation({
  method: "get",
  path: "/v1/hosts/{id}",
  operationId: "getHost",
  tag,
  summary: "Get a host",
  request: { params },
  responses: { 200: json(Host, "The host") },
  errors: ["not_found"],
});

function change(verb: string, operationId: OperationId, summary: string, description: string) {
  return operation({
    method: "post",
    path: `/v1/hosts/{id}/${verb}`,
    operationId,
    tag,
    summary,
    description,
    request: { params },
    responses: { 200: json(Host, "The host as it is now") },
    errors: ["not_found"],
  });
}

const drain = change("drain", "drainHost", "Place no new containers on a host", "Those that it has go on.");
const activate = change("activate", "activateHost", "Place containers on a host again", "Takes a drain back.");

function hostView(row: HostRow): z.infer<typeof Host> {
  const { id, name, state, alive, address, cpus, memory, disk, used, heartbeatAt, createdAt } = row;
  const portRange = { first: row.portFirst, last: row.portLast };
  return { id, name, state, alive, address, cpus, memory, disk, used, portRange, heartbeatAt, createdAt };
}

export function addHosts(app: App, services: Services): void {
  const { sql } = services;

  app.openapi(list, async (c) => c.json({ items: (await listHosts(sql)).map(hostView), nextCursor: null }, 200));

  app.openapi(get, async (c) => {
    const [row] = await listHosts(sql, c.req.valid("param").id);
    if (row === undefined) throw notFound("host");
    return c.json(hostView(row), 200);
  });

  for (const [route, state] of [
    [drain, "draining"],
    [activate, "active"],
  ] as const) {
    app.openapi(route, async (c) => {
      const row = await setHostState(sql, c.req.valid("param").id, state);
      if (row === null) throw notFound("host");
      return c.json(hostView(row), 200);
    });
  }
}
