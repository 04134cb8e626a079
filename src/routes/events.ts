import { z } from "@hono/zod-openapi";
import { currentPosition, type EventFilter, type EventPosition, type EventRow, eventsAfter } from "../db/events.ts";
import type { Scope } from "../db/scope.ts";
import { Changes, topics } from "../db/wakeups.ts";
import type { App, Services } from "./context.ts";
import { eventStream, heartbeat, heartbeatMs, heldStream, serverSentEvent, wantsEvents } from "./held-stream.ts";
import { operation } from "./operation.ts";
import { listSchema, pageQuery, repeated } from "./parameters.ts";

const positionPattern = /^\d{1,20}-\d{1,19}$/;

const Event = z
  .object({
    id: z.string().openapi({ description: "Its place in the project's events.", example: "4021-17" }),
    type: z.string().openapi({ example: "container.started" }),
    subjectId: z.string().openapi({ example: "ctr_0q3xr5kkp8wmz2v9d1hc" }),
    data: z.record(z.string(), z.unknown()),
    at: z.iso.datetime(),
  })
  .openapi("Event");

const list = operation({
  method: "get",
  path: "/v1/events",
  operationId: "listEvents",
  tag: "Events",
  summary: "Read or follow what happened in the project, oldest first",
  description:
    "With `Accept: text/event-stream` it goes on with what happens; begun with `Last-Event-ID` (or `cursor`) it misses " +
    "nothing and repeats nothing, else it begins now. Any event's id is also a `cursor`.",
  request: {
    headers: z.object({
      "last-event-id": z
        .string()
        .regex(positionPattern, "Is not an id of this stream")
        .optional()
        .openapi({ description: "Go on behind this event." }),
    }),
    query: z.strictObject({
      limit: pageQuery.limit,
      cursor: z.string().regex(positionPattern, "Is not an event's id").optional(),
      type: repeated(z.string().max(100)).openapi({
        type: "array",
        items: { type: "string" },
        description: "Only these types.",
        example: ["container.started"],
      }),
      subjectId: z.string().max(100).optional(),
    }),
  },
  responses: {
    200: {
      description: "Events",
      content: {
        "application/json": { schema: listSchema("EventList", Event) },
        "text/event-stream": { schema: z.string() },
      },
    },
  },
});

const idOf = (position: EventPosition) => `${position.xid}-${position.id}`;

function parsePosition(text: string): EventPosition {
  const [xid = "0", id = "0"] = text.split("-");
  return { xid, id };
}

function eventView({ position, ...event }: EventRow): z.infer<typeof Event> {
  return { id: idOf(position), ...event };
}

const batch = 200;
/** How soon to look again: when events wait for an older transaction's end, and when a wake-up may have been lost. */
const pendingMs = 50;
const pollMs = 5_000;

/** Events from a position on, as server-sent events, until the signal fires. */
async function* follow(
  services: Services,
  scope: Scope,
  from: EventPosition,
  filter: EventFilter,
  signal: AbortSignal,
): AsyncGenerator<string> {
  const changes = new Changes();
  const unsubscribe = services.wakeups.subscribe(topics.events(scope.projectId), () => changes.wake());
  let position = from;
  let sent = performance.now();
  try {
    yield heartbeat;
    while (!signal.aborted) {
      const { events, upTo, pending } = await eventsAfter(services.sql, scope, position, filter, batch);
      for (const event of events) yield serverSentEvent(idOf(event.position), event.type, eventView(event));
      position = upTo;
      if (events.length > 0) sent = performance.now();
      if (events.length === batch) continue;
      await changes.next(pending ? pendingMs : pollMs, signal);
      if (performance.now() - sent > heartbeatMs) {
        yield heartbeat;
        sent = performance.now();
      }
    }
  } finally {
    unsubscribe();
  }
}

export function addEvents(app: App, services: Services): void {
  app.openapi(list, async (c) => {
    const { limit = 50, cursor, type, subjectId } = c.req.valid("query");
    const { scope } = c.var;
    const filter = { types: type.length === 0 ? undefined : type, subjectId };
    const from = c.req.valid("header")["last-event-id"] ?? cursor;
    if (wantsEvents(c)) {
      const start = from === undefined ? await currentPosition(services.sql) : parsePosition(from);
      return heldStream(services, c, eventStream, (signal) => follow(services, scope, start, filter, signal));
    }
    const start = parsePosition(from ?? "0-0");
    const { events } = await eventsAfter(services.sql, scope, start, filter, limit + 1);
    const shown = events.slice(0, limit);
    const last = shown.at(-1);
    const nextCursor = events.length > limit && last !== undefined ? idOf(last.position) : null;
    return c.json({ items: shown.map(eventView), nextCursor }, 200);
  });
}
