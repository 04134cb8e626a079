import { z } from "@hono/zod-openapi";
import { BerthError } from "../core/errors.ts";
import { readAll } from "./agents.ts";
import { AbsolutePath, Environment, User } from "./container-schema.ts";
import { containerParam, requireContainer } from "./containers.ts";
import type { App, Services } from "./context.ts";
import {
  eventStream,
  heartbeat,
  heartbeatMs,
  plainText,
  relayedStream,
  serverSentEvent,
  wantsEvents,
} from "./held-stream.ts";
import { body, json, operation } from "./operation.ts";
import { count, flag } from "./parameters.ts";

const tag = "Containers";
const time = z.iso.datetime({ offset: true }).openapi({ example: "2025-11-24T10:00:00Z" });

const logs = operation({
  method: "get",
  path: "/v1/containers/{id}/logs",
  operationId: "getContainerLogs",
  tag,
  summary: "Read or follow a container's output",
  description:
    "Plain text, or with `Accept: text/event-stream` one event a line: `{ at, stream, text }`, resumed with `Last-Event-ID`.",
  request: {
    params: containerParam,
    headers: z.object({
      "last-event-id": z
        .string()
        .max(100)
        .regex(/^[\d:.TZ+-]{10,60}_\d{1,9}$/, "Is not an id of this stream")
        .optional()
        .openapi({ description: "Go on behind this event." }),
    }),
    query: z.strictObject({
      follow: flag(false).openapi({ description: "Go on until the container has ended." }),
      tail: count(0, 1_000_000).optional().openapi({ type: "integer", description: "Only so many of the last lines." }),
      since: time.optional(),
      until: time.optional(),
      stdout: flag(true),
      stderr: flag(true),
      timestamps: flag(false).openapi({ description: "Begin each line of text with its time." }),
    }),
  },
  responses: {
    200: {
      description: "The output",
      content: { "text/plain": { schema: z.string() }, "text/event-stream": { schema: z.string() } },
    },
  },
  errors: ["not_found", "host_unavailable"],
});

const maxExecOutput = 16 * 1024 * 1024;

/** As the host's agent answers it. */
const ExecResult = z
  .object({
    exitCode: z.int().openapi({ description: "128 + n for a command that signal n ended." }),
    stdout: z.string(),
    stderr: z.string(),
    truncated: z.boolean().openapi({ description: "Whether output beyond 1 MiB a stream was dropped." }),
    timedOut: z.boolean().openapi({ description: "Whether it was killed because its time was up." }),
  })
  .openapi("ExecResult");

const exec = operation({
  method: "post",
  path: "/v1/containers/{id}/exec",
  operationId: "execContainer",
  tag,
  summary: "Run a command in a container and wait for its end",
  request: {
    params: containerParam,
    body: body(
      z
        .strictObject({
          command: z.array(z.string().max(32_768)).min(1).max(1_000),
          env: Environment.optional(),
          user: User.optional(),
          workingDirectory: AbsolutePath.optional(),
          tty: z.boolean().default(false).openapi({ description: "Not supported yet." }),
          stdin: z.string().optional().openapi({ description: "What the command reads." }),
          timeoutSeconds: z.int().min(1).max(3_600).default(60).openapi({ description: "Then it is killed." }),
        })
        .openapi("Exec", { example: { command: ["cat", "/etc/hostname"] } }),
    ),
  },
  responses: {
    200: json(ExecResult, "It has ended"),
  },
  errors: [
    "not_found",
    "invalid_state",
    "host_unavailable",
    "not_supported",
    "command_not_found",
    "command_not_executable",
    "invalid_user",
    "file_not_found",
  ],
});

/** A line as the host's agent answers it. `partial`: the line goes on in the next one of its stream. */
const LogLine = z.object({
  at: z.string(),
  stream: z.enum(["stdout", "stderr"]),
  text: z.string(),
  partial: z.boolean().default(false),
});
type LogLine = z.infer<typeof LogLine>;

/** Lines of newline-delimited JSON; null when nothing came for a while. */
async function* parseLines(chunks: AsyncIterable<Buffer>, signal: AbortSignal): AsyncGenerator<LogLine | null> {
  const source = chunks[Symbol.asyncIterator]();
  const decoder = new TextDecoder();
  let rest = "";
  let next = source.next();
  while (!signal.aborted) {
    const { promise: quiet, resolve } = Promise.withResolvers<null>();
    const timer = setTimeout(() => resolve(null), heartbeatMs);
    const got = await Promise.race([next, quiet]);
    clearTimeout(timer);
    if (got === null) {
      yield null;
      continue;
    }
    if (got.done === true) return;
    const lines = (rest + decoder.decode(got.value, { stream: true })).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) yield LogLine.parse(JSON.parse(line));
    next = source.next();
  }
}

/** The lines as text, each begun with its time when asked. */
async function* asText(lines: AsyncIterable<LogLine | null>, timestamps: boolean): AsyncGenerator<string> {
  const open = { stdout: false, stderr: false };
  for await (const line of lines) {
    if (line === null) continue;
    const start = timestamps && !open[line.stream] ? `${line.at} ` : "";
    open[line.stream] = line.partial;
    yield `${start}${line.text}${line.partial ? "" : "\n"}`;
  }
}

/**
 * The lines as events, without those up to `after`. An id is the line's time and its number among those of that time:
 * the monitor writes several lines with one time.
 */
async function* asEvents(
  lines: AsyncIterable<LogLine | null>,
  after: { at: string; number: number } | null,
): AsyncGenerator<string> {
  let at = "";
  let number = 0;
  for await (const line of lines) {
    if (line === null) {
      yield heartbeat;
      continue;
    }
    number = line.at === at ? number + 1 : 1;
    at = line.at;
    if (after !== null && (at < after.at || (at === after.at && number <= after.number))) continue;
    yield serverSentEvent(`${at}_${String(number)}`, "log", line);
  }
}

export function addContainerStreams(app: App, services: Services): void {
  app.openapi(logs, async (c) => {
    const { timestamps, ...query } = c.req.valid("query");
    const row = await requireContainer(services, c, c.req.valid("param").id);
    const events = wantsEvents(c);
    const [, at, number] = /^(.+)_(\d+)$/.exec(c.req.valid("header")["last-event-id"] ?? "") ?? [];
    const after = at === undefined ? null : { at, number: Number(number) };
    const search = new URLSearchParams({
      follow: String(query.follow),
      stdout: String(query.stdout),
      stderr: String(query.stderr),
      ...(query.tail === undefined || after !== null ? {} : { tail: String(query.tail) }),
      ...(after === null ? (query.since === undefined ? {} : { since: query.since }) : { since: after.at }),
      ...(query.until === undefined ? {} : { until: query.until }),
    });
    const path = `/containers/${row.id}/logs?${search.toString()}`;
    const ask = (signal: AbortSignal) => services.agents.ask(row.hostId, { method: "GET", path, signal });
    return relayedStream(services, c, events ? eventStream : plainText, ask, (sent, signal) => {
      const lines = parseLines(sent, signal);
      return events ? asEvents(lines, after) : asText(lines, timestamps);
    });
  });

  app.openapi(exec, async (c) => {
    const { tty, ...asked } = c.req.valid("json");
    if (tty) throw new BerthError("not_supported", "Interactive commands are not supported yet.");
    const row = await requireContainer(services, c, c.req.valid("param").id);
    if (row.status !== "running") throw new BerthError("invalid_state", `The container is ${row.status}.`);
    const held = services.streams.open(c.var.principal, c.var.scope.projectId);
    try {
      const response = await services.agents.ask(row.hostId, {
        method: "POST",
        path: `/containers/${row.id}/exec`,
        body: asked,
        signal: AbortSignal.any([held.signal, c.req.raw.signal]),
        answerMs: (asked.timeoutSeconds + 10) * 1000,
      });
      return c.json(ExecResult.parse(JSON.parse(await readAll(response, maxExecOutput))), 200);
    } finally {
      held.close();
    }
  });
}
