import { z } from "@hono/zod-openapi";
import { type BuildLogRow, buildLogAfter, findBuild } from "../db/builds.ts";
import type { Scope } from "../db/scope.ts";
import { Changes, topics } from "../db/wakeups.ts";
import { buildParam, requireBuild } from "./builds.ts";
import type { App, Services } from "./context.ts";
import {
  eventStream,
  heartbeat,
  heartbeatMs,
  heldStream,
  plainText,
  serverSentEvent,
  wantsEvents,
} from "./held-stream.ts";
import { hasEnded } from "./jobs.ts";
import { operation } from "./operation.ts";
import { flag } from "./parameters.ts";

const logs = operation({
  method: "get",
  path: "/v1/builds/{id}/logs",
  operationId: "getBuildLogs",
  tag: "Builds",
  summary: "Read or follow a build's log",
  description:
    "Plain text, or with `Accept: text/event-stream` one event a line: `{ seq, step, stream, text, at }`, resumed with " +
    "`Last-Event-ID`.",
  request: {
    params: buildParam,
    query: z.strictObject({ follow: flag(false).openapi({ description: "Go on until the build has ended." }) }),
    headers: z.object({
      "last-event-id": z
        .string()
        .regex(/^\d{1,15}$/, "Is not an id of this stream")
        .optional()
        .openapi({ description: "Go on behind this line." }),
    }),
  },
  responses: {
    200: {
      description: "The log",
      content: { "text/plain": { schema: z.string() }, "text/event-stream": { schema: z.string() } },
    },
  },
  errors: ["not_found"],
});

const batch = 500;
const pollMs = 1_000;

/** A build's lines behind `after`, to the end of the build when following; null when nothing came for a while. */
export async function* readBuildLog(
  services: Services,
  scope: Scope,
  id: string,
  after: number,
  follow: boolean,
  signal: AbortSignal,
): AsyncGenerator<BuildLogRow[] | null> {
  const changes = new Changes();
  const unsubscribe = services.wakeups.subscribe(topics.resource(id), () => changes.wake());
  let position = after;
  let sent = performance.now();
  try {
    while (!signal.aborted) {
      // Looked up before the lines: what was logged before the end is then surely read.
      const ended = !follow || hasEnded(await findBuild(services.sql, scope, id));
      const rows = await buildLogAfter(services.sql, scope, id, position, batch);
      if (rows.length > 0) {
        position = rows.at(-1)?.seq ?? position;
        sent = performance.now();
        yield rows;
      }
      if (rows.length === batch) continue;
      if (ended) return;
      await changes.next(pollMs, signal);
      if (performance.now() - sent > heartbeatMs) {
        yield null;
        sent = performance.now();
      }
    }
  } finally {
    unsubscribe();
  }
}

async function* asText(batches: AsyncIterable<BuildLogRow[] | null>): AsyncGenerator<string> {
  for await (const rows of batches) if (rows !== null) yield rows.map((row) => `${row.text}\n`).join("");
}

async function* asEvents(batches: AsyncIterable<BuildLogRow[] | null>): AsyncGenerator<string> {
  for await (const rows of batches) {
    yield rows === null ? heartbeat : rows.map((row) => serverSentEvent(String(row.seq), "log", row)).join("");
  }
}

export function addBuildLogs(app: App, services: Services): void {
  app.openapi(logs, async (c) => {
    const { id } = await requireBuild(services, c, c.req.valid("param").id);
    const { follow } = c.req.valid("query");
    const after = Number(c.req.valid("header")["last-event-id"] ?? 0);
    const events = wantsEvents(c);
    return heldStream(services, c, events ? eventStream : plainText, (signal) => {
      const batches = readBuildLog(services, c.var.scope, id, after, follow, signal);
      return events ? asEvents(batches) : asText(batches);
    });
  });
}
