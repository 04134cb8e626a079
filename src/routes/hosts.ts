import { z } from "@hono/zod-openapi";
import { BerthError } from "../core/errors.ts";
import { forgetHost, type HostRow, listHosts, setHostState } from "../db/hosts.ts";
import type { App, Services } from "./context.ts";
import { json, operation } from "./operation.ts";
import { flag, idParam, listSchema, notFound } from "./parameters.ts";
import type { OperationId } from "./permissions.ts";

const tag = "Hosts";
const params = idParam("host");

const Room = { cpus: z.number(), memory: z.int(), disk: z.int() };

const Host = z
  .object({
    id: z.string().openapi({ example: "hst_0q3xr5kkp8wmz2v9d1hc" }),
    name: z.string().openapi({ example: "worker-1" }),
    state: z.enum(["ready", "draining", "lost"]).openapi({
      description: "`lost`: its worker has not been heard of for 30 seconds. Then nothing is placed there.",
    }),
    labels: z.record(z.string(), z.string()).openapi({ example: { zone: "a" } }),
    address: z.string().openapi({ description: "Where clients reach published ports.", example: "203.0.113.5" }),
    ...Room,
    used: z.object({ ...Room, containers: z.int() }).openapi({ description: "What all its containers were promised." }),
    diskFree: z.int().nullable().openapi({
      description: "Bytes of its disk that are free, by what its worker told last; null: it has not yet.",
    }),
    diskReserve: z.int().openapi({ description: "With fewer bytes free, nothing more is placed there." }),
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

const drain = change(
  "drain",
  "drainHost",
  "Give a host no new containers and jobs",
  "Those that it has go on. To empty the host, remove its containers, or wait for those that end.",
);
const activate = change("activate", "activateHost", "Give a host containers and jobs again", "Takes a drain back.");

const forget = operation({
  method: "delete",
  path: "/v1/hosts/{id}",
  operationId: "forgetHost",
  tag,
  summary: "Forget a lost host",
  description:
    "Its containers are removed, each with an event `container.removed` that has the reason `host_lost`; its jobs go elsewhere. It is cut off at once. Its worker must join anew, and then ends what it still runs.",
  request: {
    params,
    query: z.strictObject({
      force: flag(false).openapi({ description: "Also when it is alive, such as one that was taken over." }),
    }),
  },
  responses: { 204: { description: "It is forgotten" } },
  errors: ["not_found", "invalid_state"],
});

function hostView(row: HostRow): z.infer<typeof Host> {
  const { id, name, state, labels, address, cpus, memory, disk, used, heartbeatAt, createdAt } = row;
  const { diskFree, diskReserve } = row;
  const portRange = { first: row.portFirst, last: row.portLast };
  return {
    id,
    name,
    state,
    labels,
    address,
    cpus,
    memory,
    disk,
    used,
    diskFree,
    diskReserve,
    portRange,
    heartbeatAt,
    createdAt,
  };
}

export function addHosts(app: App, services: Services): void {
  const { sql } = services;

  app.openapi(list, async (c) => c.json({ items: (await listHosts(sql)).map(hostView), nextCursor: null }, 200));

  app.openapi(get, async (c) => {
    const [row] = await listHosts(sql, c.req.valid("param").id);
    if (row === undefined) throw notFound("host");
    return c.json(hostView(row), 200);
  });

  app.openapi(forget, async (c) => {
    const { id } = c.req.valid("param");
    if (!(await forgetHost(sql, id, c.req.valid("query").force))) {
      if ((await listHosts(sql, id)).length === 0) throw notFound("host");
      throw new BerthError(
        "invalid_state",
        "The host is alive. Stop its worker first, and wait until it is lost, or use force=true.",
      );
    }
    return c.body(null, 204);
  });

  for (const [route, state] of [
    [drain, "draining"],
    [activate, "ready"],
  ] as const) {
    app.openapi(route, async (c) => {
      const row = await setHostState(sql, c.req.valid("param").id, state);
      if (row === null) throw notFound("host");
      return c.json(hostView(row), 200);
    });
  }
}
