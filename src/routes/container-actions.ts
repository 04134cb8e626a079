import { constants } from "node:os";
import { z } from "@hono/zod-openapi";
import { BerthError } from "../core/errors.ts";
import { signalNumber } from "../core/signals.ts";
import { findContainer, type LockedContainer, lockContainer, queueSignal, want, wantPaused } from "../db/containers.ts";
import { appendEvent, lastEvent } from "../db/events.ts";
import { type Tx, together, wake } from "../db/scope.ts";
import { topics } from "../db/wakeups.ts";
import { Container, Signal } from "./container-schema.ts";
import { containerParam, requireContainer, shown } from "./containers.ts";
import type { App, Request, Services } from "./context.ts";
import { idempotencyHeader, once } from "./idempotency.ts";
import { json, operation } from "./operation.ts";
import { count, notFound } from "./parameters.ts";
import type { OperationId } from "./permissions.ts";
import { preferHeader, settle } from "./waiting.ts";

const tag = "Containers";
const headers = preferHeader.extend(idempotencyHeader.shape);
const responses = { 200: json(Container, "It has settled"), 202: json(Container, "It is on its way") };

function action(verb: string, operationId: OperationId, summary: string, description: string) {
  return operation({
    method: "post",
    path: `/v1/containers/{id}/${verb}`,
    operationId,
    tag,
    summary,
    description,
    request: { params: containerParam, headers },
    responses,
    errors: ["not_found", "invalid_state", "idempotency_key_reused"],
  });
}

const start = action("start", "startContainer", "Start a container", "One that runs already stays as it is.");
const stop = action(
  "stop",
  "stopContainer",
  "Stop a container",
  "Sends its stop signal, and SIGKILL after `stopTimeoutSeconds`. One that does not run stays as it is.",
);
const restart = action(
  "restart",
  "restartContainer",
  "Stop a container and start it again",
  "Starts one that does not run.",
);

const pause = action(
  "pause",
  "pauseContainer",
  "Pause a container",
  "All its processes stand still where they are, keep their memory and use no CPU. One that is paused stays as it is.",
);
const unpause = action("unpause", "unpauseContainer", "Let a paused container go on", "One that runs stays as it is.");

const kill = operation({
  method: "post",
  path: "/v1/containers/{id}/kill",
  operationId: "killContainer",
  tag,
  summary: "Send a signal to a container's process",
  description:
    "SIGKILL, the default, also ends the container: no restart policy starts it again. Any other signal is the process's to " +
    "handle, and when it ends by it, the restart policy decides.",
  request: {
    params: containerParam,
    headers,
    body: {
      content: {
        "application/json": {
          schema: z.strictObject({ signal: Signal.optional().openapi({ default: "SIGKILL" }) }).openapi("Kill"),
        },
      },
    },
  },
  responses,
  errors: ["not_found", "invalid_state", "idempotency_key_reused"],
});

const wait = operation({
  method: "post",
  path: "/v1/containers/{id}/wait",
  operationId: "waitContainer",
  tag,
  summary: "Wait until a container has ended",
  description: "Answers 200 when it has; 202 with its state when the time is up before.",
  request: {
    params: containerParam,
    query: z.strictObject({
      condition: z.enum(["ended", "running", "removed"]).default("ended"),
      timeoutSeconds: count(0, 600)
        .optional()
        .openapi({ type: "integer", minimum: 0, maximum: 600, default: 60, description: "How long to wait at most." }),
    }),
  },
  responses: { 200: json(Container, "The condition is met"), 202: json(Container, "The time is up") },
  errors: ["not_found"],
});

/** Whether the process that was wanted last is there or on its way. */
function runs(container: LockedContainer): boolean {
  return (
    container.wanted === "running" &&
    (container.wantedRun > container.run || ["starting", "running", "restarting", "paused"].includes(container.status))
  );
}

/** Does one change to the request's container, in one transaction with its event and the host's wake-up. */
async function change(
  services: Services,
  c: Request,
  id: string,
  type: string,
  apply: (tx: Tx, container: LockedContainer) => Promise<"changed" | "unchanged">,
) {
  const { scope } = c.var;
  const made = await once(services, c, async (tx) => {
    const container = await lockContainer(tx, scope.projectId, id);
    if (container === null) throw notFound("container");
    if (container.wanted === "removed") throw new BerthError("invalid_state", "The container is being removed.");
    if ((await apply(tx, container)) === "changed") {
      await together([
        appendEvent(tx, { projectId: scope.projectId, type, subjectId: container.id }),
        wake(tx, topics.host(container.hostId)),
      ]);
    }
    return { id: container.id };
  });
  const read = () => findContainer(services.sql, scope, made.id);
  const row = await settle(services, c, made.id, read, (state) => state?.settled ?? true);
  if (row === null) throw notFound("container");
  return row;
}

export function addContainerActions(app: App, services: Services): void {
  app.openapi(start, async (c) => {
    const row = await change(
      services,
      c,
      c.req.valid("param").id,
      "container.start_requested",
      async (tx, container) => {
        if (runs(container)) return "unchanged";
        await want(tx, container.id, "running", true);
        return "changed";
      },
    );
    return c.json(shown(c, row), row.settled ? 200 : 202);
  });

  app.openapi(stop, async (c) => {
    const row = await change(
      services,
      c,
      c.req.valid("param").id,
      "container.stop_requested",
      async (tx, container) => {
        if (container.wanted !== "running") return "unchanged";
        await want(tx, container.id, "stopped", false);
        return "changed";
      },
    );
    return c.json(shown(c, row), row.settled ? 200 : 202);
  });

  app.openapi(restart, async (c) => {
    const row = await change(
      services,
      c,
      c.req.valid("param").id,
      "container.restart_requested",
      async (tx, container) => {
        await want(tx, container.id, "running", true);
        return "changed";
      },
    );
    return c.json(shown(c, row), row.settled ? 200 : 202);
  });

  for (const [route, type, paused] of [
    [pause, "container.pause_requested", true],
    [unpause, "container.unpause_requested", false],
  ] as const) {
    app.openapi(route, async (c) => {
      const row = await change(services, c, c.req.valid("param").id, type, async (tx, container) => {
        const { wanted, wantedRun, run, status } = container;
        if (wanted !== "running" || wantedRun > run || !["running", "paused"].includes(status)) {
          throw new BerthError(
            "invalid_state",
            `The container is ${status}; only one that runs can stand still or go on.`,
          );
        }
        if (container.wantedPaused === paused) return "unchanged";
        await wantPaused(tx, container.id, paused);
        return "changed";
      });
      return c.json(shown(c, row), row.settled ? 200 : 202);
    });
  }

  app.openapi(kill, async (c) => {
    const signal = signalNumber(c.req.valid("json").signal ?? "SIGKILL") ?? constants.signals.SIGKILL;
    const row = await change(
      services,
      c,
      c.req.valid("param").id,
      "container.kill_requested",
      async (tx, container) => {
        // Also one that is stopping: who does not want to wait for its patience to end kills it.
        if (!["running", "paused", "stopping"].includes(container.status)) {
          throw new BerthError(
            "invalid_state",
            `The container is ${container.status}, so there is no process to signal.`,
          );
        }
        await queueSignal(tx, container.id, signal, signal === constants.signals.SIGKILL);
        return "changed";
      },
    );
    return c.json(shown(c, row), row.settled ? 200 : 202);
  });

  app.openapi(wait, async (c) => {
    const { condition, timeoutSeconds = 60 } = c.req.valid("query");
    let last = await requireContainer(services, c, c.req.valid("param").id);
    const met = {
      ended: (row: typeof last | null) =>
        row === null || (row.settled && row.status !== "running" && row.status !== "paused"),
      running: (row: typeof last | null) => row === null || (row.settled && row.status !== "created"),
      removed: (row: typeof last | null) => row === null,
    }[condition];
    const read = async () => {
      const row = await findContainer(services.sql, c.var.scope, last.id);
      if (row !== null) last = row;
      return row;
    };
    const row = await settle(services, c, last.id, read, met, timeoutSeconds);
    if (row !== null) return c.json(shown(c, row), met(row) ? 200 : 202);
    // It was removed while we waited (autoRemove): its last event says how it ended.
    const ended = await lastEvent(services.sql, c.var.scope, "container.exited", last.id);
    const exitCode = ended?.data.exitCode;
    return c.json(
      {
        ...shown(c, last),
        status: ended === null ? ("removing" as const) : ("exited" as const),
        exitCode: typeof exitCode === "number" ? exitCode : last.exitCode,
        finishedAt: last.finishedAt ?? ended?.at ?? null,
      },
      200,
    );
  });
}
