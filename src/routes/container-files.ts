import { Readable } from "node:stream";
import { z } from "@hono/zod-openapi";
import { BerthError } from "../core/errors.ts";
import { bounded } from "../image/bounded.ts";
import { type AgentRequest, readAll } from "./agents.ts";
import { AbsolutePath } from "./container-schema.ts";
import { containerParam, requireContainer } from "./containers.ts";
import type { App, Request, Services } from "./context.ts";
import { relayedStream } from "./held-stream.ts";
import { json, operation } from "./operation.ts";

const tag = "Containers";
const tar = "application/x-tar";
const binary = z.string().openapi({ type: "string", format: "binary" });
/** An upload takes as long as its client does; each of its reads is bounded by the connection's own limits. */
const uploadMs = 60 * 60_000;

const query = z.strictObject({
  path: AbsolutePath.openapi({ description: "In the container; symlinks are followed inside it.", example: "/app" }),
});

const common =
  "The container must run. What is mounted over its filesystem (`/proc`, `/sys`, `/dev`, `/etc/hosts`, …) is not part of it.";

const get = operation({
  method: "get",
  path: "/v1/containers/{id}/files",
  operationId: "getContainerFiles",
  tag,
  summary: "Get a file or directory of a container as a tar",
  description: `${common} Owners are as the container has them; sockets, devices and extended attributes are left out. \`Berth-File\` describes what the path leads to, and \`HEAD\` answers it alone.`,
  request: { params: containerParam, query },
  responses: {
    200: {
      description: "The tar; its names begin with the path's last name",
      content: { [tar]: { schema: binary } },
      headers: {
        "Berth-File": {
          description: "JSON: `{ name, type, mode, uid, gid, size, mtime }`",
          schema: { type: "string" },
        },
      },
    },
  },
  errors: ["not_found", "file_not_found", "invalid_path", "invalid_state", "host_unavailable"],
});

const FilesWritten = z
  .object({ entries: z.int(), bytes: z.int().openapi({ description: "Of the files' contents." }) })
  .openapi("FilesWritten");

const put = operation({
  method: "put",
  path: "/v1/containers/{id}/files",
  operationId: "putContainerFiles",
  tag,
  summary: "Put the files of a tar into a directory of a container",
  description: `${common} The tar is plain or compressed with gzip or zstd. Files and links replace what is there, each as a whole; owners are as the tar says, root for those that no container has. What was written before an error stays.`,
  request: { params: containerParam, query, body: { required: true, content: { [tar]: { schema: binary } } } },
  responses: { 200: json(FilesWritten, "It is written") },
  errors: [
    "not_found",
    "file_not_found",
    "invalid_path",
    "invalid_archive",
    "invalid_state",
    "body_too_large",
    "disk_full",
    "host_unavailable",
  ],
});

const FileStat = z.object({
  name: z.string(),
  type: z.string(),
  mode: z.int(),
  uid: z.int(),
  gid: z.int(),
  size: z.int(),
  mtime: z.string(),
});

export function addContainerFiles(app: App, services: Services): void {
  /** Asks the host of a running container about its files. */
  const ask = (row: { id: string; hostId: string }, path: string, more: Partial<AgentRequest> & { what?: string }) => {
    const { what = "", method = "GET", signal = new AbortController().signal, ...rest } = more;
    const search = new URLSearchParams({ path }).toString();
    return services.agents.ask(row.hostId, {
      ...rest,
      method,
      signal,
      path: `/containers/${row.id}/files${what}?${search}`,
    });
  };

  const requireRunning = async (c: Request, id: string) => {
    const row = await requireContainer(services, c, id);
    if (row.status !== "running" && row.status !== "paused") {
      throw new BerthError("invalid_state", `The container is ${row.status}.`);
    }
    return row;
  };

  app.openapi(get, async (c) => {
    const { path } = c.req.valid("query");
    const row = await requireRunning(c, c.req.valid("param").id);
    const stat = FileStat.parse(JSON.parse(await readAll(await ask(row, path, { what: "/stat" }), 64 * 1024)));
    const described = { "Berth-File": asciiJson(stat), "Content-Type": tar };
    // hono answers HEAD by what GET answers.
    if (c.req.method === "HEAD") return c.body(null, 200, described);
    const response = await relayedStream(services, c, tar, (signal) => ask(row, path, { signal }), chunksOf);
    response.headers.set("Berth-File", described["Berth-File"]);
    return response;
  });

  app.openapi(put, async (c) => {
    const { path } = c.req.valid("query");
    const row = await requireRunning(c, c.req.valid("param").id);
    if (row.spec.readOnlyRootfs) {
      throw new BerthError("invalid_state", "The container's root filesystem is read-only.");
    }
    const { body } = c.req.raw;
    if (body === null) throw new BerthError("invalid_archive", "The body is empty; a tar is expected.");
    const held = services.streams.open(c.var.principal, c.var.scope.projectId);
    try {
      const response = await ask(row, path, {
        method: "PUT",
        upload: bounded(Readable.fromWeb(body), services.limits.contextBytes),
        signal: AbortSignal.any([held.signal, c.req.raw.signal]),
        answerMs: uploadMs,
      });
      return c.json(FilesWritten.parse(JSON.parse(await readAll(response, 64 * 1024))), 200);
    } finally {
      held.close();
    }
  });
}

async function* chunksOf(source: AsyncIterable<Buffer>): AsyncGenerator<Uint8Array> {
  yield* source;
}

/** JSON that a header can carry: other characters than ASCII are escaped. */
function asciiJson(value: object): string {
  return JSON.stringify(value).replaceAll(
    /[^\x20-\x7e]/g,
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}
