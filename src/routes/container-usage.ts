import { setTimeout as sleep } from "node:timers/promises";
import { z } from "@hono/zod-openapi";
import { BerthError } from "../core/errors.ts";
import { readAll } from "./agents.ts";
import { containerParam, requireContainer } from "./containers.ts";
import type { App, Request, Services } from "./context.ts";
import { eventStream, heldStream, serverSentEvent, wantsEvents } from "./held-stream.ts";
import { operation } from "./operation.ts";

const tag = "Containers";
const maxAnswerBytes = 16 * 1024 * 1024;
const everyMs = 1000;

const bytes = z.int().min(0);

/** As the host's agent answers it. */
const Stats = z
  .object({
    at: z.iso.datetime(),
    cpu: z.object({
      seconds: z.number().openapi({ description: "Computed by all its processes since its start." }),
      throttledSeconds: z.number().openapi({ description: "Spent waiting because it had used its share." }),
    }),
    memory: z.object({
      usedBytes: bytes.openapi({ description: "Without cached files that would be given up for other needs." }),
      peakBytes: bytes.nullable().openapi({ description: "null where the kernel does not count it." }),
      limitBytes: bytes,
    }),
    processes: z.object({ count: z.int(), limit: z.int() }),
    network: z
      .object({ receivedBytes: bytes, receivedPackets: bytes, sentBytes: bytes, sentPackets: bytes })
      .nullable(),
    disk: z.object({ usedBytes: bytes, limitBytes: bytes }).openapi({ description: "Its writable layer." }),
  })
  .openapi("ContainerStats");

const Process = z
  .object({
    pid: z.int().openapi({ description: "As inside the container, like all numbers here." }),
    parentPid: z.int().openapi({ description: "0: it was started from outside, as the first process and `exec` are." }),
    uid: z.int().nullable(),
    state: z.string().openapi({ description: "`R` running, `S` sleeping, `D` waiting for a disk, `Z` ended." }),
    cpuSeconds: z.number(),
    memoryBytes: bytes,
    startedAt: z.iso.datetime(),
    command: z.array(z.string()).openapi({ example: ["sleep", "60"] }),
  })
  .openapi("Process");
const Processes = z.object({ items: z.array(Process) }).openapi("ProcessList");

const stats = operation({
  method: "get",
  path: "/v1/containers/{id}/stats",
  operationId: "getContainerStats",
  tag,
  summary: "See what a container uses",
  description: "Once, or with `Accept: text/event-stream` every second until it ends.",
  request: { params: containerParam },
  responses: {
    200: {
      description: "What it uses, and what it may",
      content: { "application/json": { schema: Stats }, "text/event-stream": { schema: z.string() } },
    },
  },
  errors: ["not_found", "invalid_state", "host_unavailable"],
});

const processes = operation({
  method: "get",
  path: "/v1/containers/{id}/processes",
  operationId: "listContainerProcesses",
  tag,
  summary: "List a container's processes",
  description: "Not for viewers: command lines may hold secrets.",
  request: { params: containerParam },
  responses: {
    200: { description: "All that run now", content: { "application/json": { schema: Processes } } },
  },
  errors: ["not_found", "invalid_state", "host_unavailable"],
});

/** The end of a container is the end of its statistics. */
function endedIsNull(error: unknown): null {
  if (error instanceof BerthError && ["invalid_state", "not_found"].includes(error.code)) return null;
  throw error;
}

const Changes = z
  .object({
    items: z.array(
      z.object({
        path: z.string().openapi({ example: "/var/log/app.log" }),
        kind: z.enum(["added", "modified", "deleted"]).openapi({
          description: "A directory is modified when anything in it is.",
        }),
      }),
    ),
    truncated: z.boolean().openapi({ description: "Whether there are more than these 10,000." }),
  })
  .openapi("ContainerChanges");

const changes = operation({
  method: "get",
  path: "/v1/containers/{id}/changes",
  operationId: "listContainerChanges",
  tag,
  summary: "List what a container's files differ in from its image's",
  description: "Of one that runs. Not for viewers, as its files are not.",
  request: { params: containerParam },
  responses: {
    200: {
      description: "The changes, a directory before what is in it",
      content: { "application/json": { schema: Changes } },
    },
  },
  errors: ["not_found", "invalid_state", "host_unavailable"],
});

export function addContainerUsage(app: App, services: Services): void {
  /** Asks the host about the request's container. @throws BerthError `invalid_state` when it does not run */
  const asking = async (c: Request, id: string, noun: "stats" | "processes" | "changes") => {
    const row = await requireContainer(services, c, id);
    if (!["running", "paused", "stopping"].includes(row.status)) {
      throw new BerthError("invalid_state", `The container is ${row.status}.`);
    }
    return async (signal: AbortSignal): Promise<unknown> => {
      const path = `/containers/${row.id}/${noun}`;
      const response = await services.agents.ask(row.hostId, { method: "GET", path, signal });
      return JSON.parse(await readAll(response, maxAnswerBytes));
    };
  };

  app.openapi(stats, async (c) => {
    const ask = await asking(c, c.req.valid("param").id, "stats");
    const first = Stats.parse(await ask(c.req.raw.signal));
    if (!wantsEvents(c)) return c.json(first, 200);
    return heldStream(services, c, eventStream, async function* (signal) {
      for (let seen: z.infer<typeof Stats> | null = first; seen !== null; ) {
        yield serverSentEvent(seen.at, "stats", seen);
        await sleep(everyMs, undefined, { signal });
        seen = await ask(signal).then((answer) => Stats.parse(answer), endedIsNull);
      }
    });
  });

  app.openapi(processes, async (c) => {
    const ask = await asking(c, c.req.valid("param").id, "processes");
    return c.json(Processes.parse(await ask(c.req.raw.signal)), 200);
  });

  app.openapi(changes, async (c) => {
    const ask = await asking(c, c.req.valid("param").id, "changes");
    return c.json(Changes.parse(await ask(c.req.raw.signal)), 200);
  });
}
