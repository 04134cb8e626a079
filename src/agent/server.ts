import type { RequestListener } from "node:http";
import { Readable } from "node:stream";
import { getRequestListener } from "@hono/node-server";
import { Hono } from "hono";
import { bodyLimit } from "hono/body-limit";
import { HTTPException } from "hono/http-exception";
import { z } from "zod";
import { BerthError, toBerthError } from "../core/errors.ts";
import { sameSecret } from "../core/keys.ts";
import { readContainer } from "../db/inbox.ts";
import { topics } from "../db/wakeups.ts";
import { logPath } from "../engine/container-start.ts";
import type { Services } from "../engine/services.ts";
import { type Change, readChanges } from "../image/changes.ts";
import { readLog } from "../isolation/container-log.ts";
import { type AgentApp, addFiles } from "./files.ts";

const flag = z.enum(["true", "false"]).transform((text) => text === "true");

const logQuery = z.strictObject({
  follow: flag.default(false),
  tail: z.coerce.number().int().min(0).max(1_000_000).optional(),
  since: z.iso.datetime({ offset: true }).optional(),
  until: z.iso.datetime({ offset: true }).optional(),
  stdout: flag.default(true),
  stderr: flag.default(true),
});

const execBody = z.strictObject({
  command: z.array(z.string()).min(1),
  env: z.record(z.string(), z.string()).default({}),
  user: z.string().optional(),
  workingDirectory: z.string().optional(),
  stdin: z.string().optional(),
  timeoutSeconds: z.number().positive().max(3600).default(60),
});

/** More than the API takes of its clients: it adds what they left out. */
const maxBodyBytes = 2 * 1024 * 1024;

/** Paths in one list of changes. */
const maxChanges = 10_000;

/** What is wrong with a request of the API's is an answer too, not an accident of the host's. */
function requestError(thrown: unknown): BerthError {
  if (thrown instanceof z.ZodError) return new BerthError("invalid_request", z.prettifyError(thrown));
  if (thrown instanceof SyntaxError) return new BerthError("invalid_json", "The body is not valid JSON.");
  if (thrown instanceof HTTPException && thrown.status === 413) {
    return new BerthError("body_too_large", `A request has at most ${String(maxBodyBytes)} bytes.`);
  }
  return toBerthError(thrown);
}

/**
 * The worker's internal listener: only byte streams that can't be rows. The API has checked who may ask; here the key
 * is checked, and that the container is this host's. Errors are `{ code, detail }` with the code's status.
 */
export function agentApp(services: Services, key: string): AgentApp {
  const { sandboxes, connection, host, config } = services;
  const app: AgentApp = new Hono();
  app.use(async (c, next) => {
    const given = /^Bearer (.+)$/.exec(c.req.header("authorization") ?? "")?.[1] ?? "";
    if (!sameSecret(given, key)) throw new BerthError("unauthorized", "The agent key is wrong.");
    await next();
  });
  app.onError((thrown, c) => {
    const error = requestError(thrown);
    if (error.code === "internal") services.log.error({ err: thrown }, "an agent request failed");
    return c.json({ code: error.code, detail: error.message }, error.status as 400);
  });

  const container = async (id: string) => {
    const row = await readContainer(connection.sql, host.id, id);
    if (row === null) throw new BerthError("not_found", "This host has no such container.");
    return row;
  };

  addFiles(app, services, container);

  app.get("/containers/:id/logs", async (c) => {
    const { id } = await container(c.req.param("id"));
    const { follow, ...filter } = logQuery.parse(c.req.query());
    const ended = async () => {
      const state = sandboxes.probe(id).state;
      if (state === "running") return false;
      const row = await readContainer(connection.sql, host.id, id);
      return row === null || ["created", "exited", "failed", "removing"].includes(row.status);
    };
    const onChange = (look: () => void) => services.wakeups.subscribe(topics.resource(id), look);
    const lines = readLog(
      logPath(config.dataDir, id),
      {
        stdout: filter.stdout,
        stderr: filter.stderr,
        ...(filter.tail === undefined ? {} : { tail: filter.tail }),
        ...(filter.since === undefined ? {} : { since: filter.since }),
        ...(filter.until === undefined ? {} : { until: filter.until }),
      },
      follow ? { ended, signal: c.req.raw.signal, onChange } : null,
    );
    const body = Readable.from(ndjson(lines), { objectMode: false, highWaterMark: 65_536 });
    return new Response(Readable.toWeb(body) as ReadableStream, {
      headers: { "content-type": "application/x-ndjson" },
    });
  });

  app.get("/containers/:id/stats", async (c) => {
    const { id, cpus, memory, pids, disk } = await container(c.req.param("id"));
    return c.json(await sandboxes.usage(id, { cpus, memory, pids, disk }));
  });

  app.get("/containers/:id/processes", async (c) => {
    const { id } = await container(c.req.param("id"));
    return c.json({ items: sandboxes.processes(id) });
  });

  app.get("/containers/:id/changes", async (c) => {
    const { id, image } = await container(c.req.param("id"));
    const upper = sandboxes.runningUpper(id);
    const paths = await services.layers.lowers(image?.layers ?? []);
    return c.json(await sandboxes.withView(paths, (root) => firstChanges(readChanges(upper, root))));
  });

  app.post("/containers/:id/exec", bodyLimit({ maxSize: maxBodyBytes }), async (c) => {
    const row = await container(c.req.param("id"));
    const request = execBody.parse(await c.req.json());
    if (row.status === "paused") throw new BerthError("invalid_state", "The container is paused.");
    return c.json(
      await sandboxes.exec(row.id, {
        args: request.command,
        env: Object.entries(request.env).map(([name, value]) => `${name}=${value}`),
        ...(request.user === undefined ? {} : { user: request.user }),
        ...(request.workingDirectory === undefined ? {} : { cwd: request.workingDirectory }),
        ...(request.stdin === undefined ? {} : { stdin: request.stdin }),
        timeoutSeconds: request.timeoutSeconds,
        signal: c.req.raw.signal,
      }),
    );
  });

  app.post("/projects/:id/caches/prune", async (c) => {
    const id = c.req.param("id");
    if (!/^[\w-]+$/.test(id)) throw new BerthError("not_found", "There is no such project.");
    return c.json({ bytes: await sandboxes.caches.prune(id) });
  });
  return app;
}

/** The same as what Node's server calls. */
export function agentListener(services: Services, key: string): RequestListener {
  const listener = getRequestListener(agentApp(services, key).fetch);
  return (request, response) => void listener(request, response);
}

/** As many as an answer has. `truncated`: there are more. */
async function firstChanges(changes: AsyncIterable<Change>): Promise<{ items: Change[]; truncated: boolean }> {
  const items: Change[] = [];
  for await (const change of changes) {
    if (items.length === maxChanges) return { items, truncated: true };
    items.push(change);
  }
  return { items, truncated: false };
}

async function* ndjson(lines: AsyncIterable<object>): AsyncGenerator<string> {
  for await (const line of lines) yield `${JSON.stringify(line)}\n`;
}
