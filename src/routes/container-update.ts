import type { z } from "@hono/zod-openapi";
import { BerthError } from "../core/errors.ts";
import { isOverfull } from "../core/placement.ts";
import { checkQuota } from "../core/quota.ts";
import { findContainer, type LockedContainer, lockContainer, updateContainer } from "../db/containers.ts";
import { appendEvent } from "../db/events.ts";
import { listHosts } from "../db/hosts.ts";
import { readQuota, readUsage } from "../db/projects.ts";
import { lock, type Scope, type Tx, together, transact, violation, wake } from "../db/scope.ts";
import { topics } from "../db/wakeups.ts";
import { Container, ContainerUpdate } from "./container-schema.ts";
import { containerParam, shown } from "./containers.ts";
import type { App, Services } from "./context.ts";
import { body, json, operation } from "./operation.ts";
import { notFound } from "./parameters.ts";
import { preferHeader, settle } from "./waiting.ts";

type Change = z.infer<typeof ContainerUpdate>;

const update = operation({
  method: "patch",
  path: "/v1/containers/{id}",
  operationId: "updateContainer",
  tag: "Containers",
  summary: "Change name, labels, restart policy or limits",
  description:
    "Limits of a running container change at once. Memory that its processes hold is not taken from them: then the limit " +
    "stays as it was, which the event `container.resources_refused` and, with `Prefer: wait`, the answer say.",
  request: { params: containerParam, headers: preferHeader, body: body(ContainerUpdate) },
  responses: {
    200: json(Container, "The container as it is now"),
    202: json(Container, "The host has not applied the limits yet"),
  },
  errors: ["not_found", "name_taken", "invalid_state", "quota_exceeded", "no_capacity", "memory_in_use"],
});

export function addContainerUpdate(app: App, services: Services): void {
  const { sql } = services;

  app.openapi(update, async (c) => {
    const { scope } = c.var;
    const change = c.req.valid("json");
    const id = await transact(sql, scope, (tx) => apply(tx, scope, c.req.valid("param").id, change)).catch(
      (error: unknown) => {
        if (violation(error) !== "containers_project_id_name_key") throw error;
        throw new BerthError("name_taken", `The project has a container named ${String(change.name)}.`);
      },
    );
    const read = () => findContainer(sql, scope, id);
    const row = await settle(services, c, id, read, (state) => state?.settled ?? true);
    if (row === null) throw notFound("container");
    const { memory } = change.resources ?? {};
    if (memory !== undefined && row.settled && row.memory > memory) {
      throw new BerthError("memory_in_use", `The container uses more than ${String(memory)} bytes of memory.`);
    }
    return c.json(shown(c, row), row.settled || change.resources === undefined ? 200 : 202);
  });
}

async function apply(tx: Tx, scope: Scope, idOrName: string, change: Change): Promise<string> {
  const { projectId } = scope;
  const { resources } = change;
  // In the order in which creations and ports take these locks.
  if (resources !== undefined) await lock(tx, `quota:${projectId}`);
  const container = await lockContainer(tx, projectId, idOrName);
  if (container === null) throw notFound("container");
  if (container.wanted === "removed") throw new BerthError("invalid_state", "The container is being removed.");
  if (resources !== undefined) await checkRoom(tx, scope, container, resources);
  await together([
    updateContainer(tx, container.id, change),
    appendEvent(tx, { projectId, type: "container.updated", subjectId: container.id, data: change }),
    ...(resources === undefined ? [] : [wake(tx, topics.host(container.hostId))]),
  ]);
  return container.id;
}

/** @throws BerthError `quota_exceeded`, `no_capacity` for more than the project or the host has left. */
async function checkRoom(
  tx: Tx,
  scope: Scope,
  container: LockedContainer,
  { cpus = container.cpus, memory = container.memory }: NonNullable<Change["resources"]>,
): Promise<void> {
  const more = { cpus: Math.max(cpus - container.cpus, 0), memory: Math.max(memory - container.memory, 0) };
  if (more.cpus === 0 && more.memory === 0) return;
  const [, quota, usage, hosts] = await together([
    lock(tx, `host:${container.hostId}`),
    readQuota(tx, scope),
    readUsage(tx, scope),
    listHosts(tx, container.hostId),
  ]);
  if (quota !== null) checkQuota(quota, usage, more);
  for (const host of hosts) {
    const used = { ...host.used, cpus: host.used.cpus + more.cpus, memory: host.used.memory + more.memory };
    if (cpus > host.cpus || memory > host.memory || isOverfull({ ...host, used })) {
      throw new BerthError("no_capacity", `The host ${host.name} does not have that much left.`);
    }
  }
}
