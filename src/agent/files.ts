import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import type { HttpBindings } from "@hono/node-server";
import { RESPONSE_ALREADY_SENT } from "@hono/node-server/utils/response";
import type { Context, Hono } from "hono";
import { z } from "zod";
import { BerthError } from "../core/errors.ts";
import type { InboxContainer } from "../db/inbox.ts";
import { decompress } from "../image/compress.ts";
import { readTar } from "../image/tar-read.ts";
import { writeTar } from "../image/tar-write.ts";
import type { OpenRoot } from "../isolation/roots.ts";
import type { Sandboxes } from "../isolation/sandbox.ts";
import type { Log } from "../log.ts";
import { ContainerRoot } from "./container-root.ts";
import { readTree, statPath } from "./file-read.ts";
import { writeTree } from "./file-write.ts";

const query = z.strictObject({
  path: z
    .string()
    .min(1)
    .max(4_096)
    .regex(/^[^\0]*$/),
});

const path = "/containers/:id/files";

/** The listener, on Node's server. */
export type AgentApp = Hono<{ Bindings: HttpBindings }>;

/** Adds reading and writing of containers' files; `container` finds one of this host's. */
export function addFiles(
  app: AgentApp,
  { sandboxes, log }: { sandboxes: Pick<Sandboxes, "openRoot">; log: Log },
  container: (id: string) => Promise<InboxContainer>,
): void {
  /** Opens the root, and closes it when `use` has ended. */
  const within = async <T>(
    c: Context,
    use: (root: ContainerRoot, path: string, signal: AbortSignal) => Promise<T>,
  ): Promise<T> => {
    const asked = query.parse(c.req.query());
    const { id } = await container(c.req.param("id") ?? "");
    const opened = sandboxes.openRoot(id);
    try {
      const root = new ContainerRoot(opened);
      try {
        return await use(root, asked.path, AbortSignal.any([opened.signal, c.req.raw.signal]));
      } catch (error) {
        throw opened.signal.aborted ? new BerthError("invalid_state", "The container has ended.") : error;
      } finally {
        root.close();
      }
    } finally {
      opened.close();
    }
  };

  app.get(`${path}/stat`, async (c) => c.json(await within(c, statPath)));

  app.get(path, async (c) => {
    const asked = query.parse(c.req.query());
    const { id } = await container(c.req.param("id"));
    const tar = tarStream(sandboxes.openRoot(id), asked.path);
    const { outgoing } = c.env;
    outgoing.writeHead(200, { "content-type": "application/x-tar" });
    // An answer that breaks off has no end, by which its reader knows.
    pipeline(tar, outgoing).catch((error: unknown) => {
      log.info({ err: error, container: id }, "a container's files were not sent to their end");
    });
    return RESPONSE_ALREADY_SENT;
  });

  app.put(path, async (c) => {
    const { body } = c.req.raw;
    if (body === null) throw new BerthError("invalid_archive", "The body is empty; a tar is expected.");
    const written = await within(c, (root, directory, signal) => {
      // Also a client that sends nothing must not keep the root open.
      const entries = readTar(decompress(Readable.fromWeb(body, { signal })));
      return writeTree(root, directory, entries, signal).catch((error: unknown) => {
        throw archiveError(error);
      });
    });
    return c.json(written);
  });
}

/** The tar of a path, made as it is read. The root is closed when the stream is, however that ends. */
function tarStream(opened: OpenRoot, path: string): Readable {
  const root = new ContainerRoot(opened);
  const tar = writeTar(readTree(root, path, opened.signal));
  const stream = Readable.from(tar, { objectMode: false, highWaterMark: 256 * 1024 });
  const abort = () => void stream.destroy();
  opened.signal.addEventListener("abort", abort);
  stream.once("close", () => {
    root.close();
    opened.close();
  });
  return stream;
}

/** What the tar's reader says of layers, said of an archive. */
function archiveError(error: unknown): unknown {
  return error instanceof BerthError && (error.code === "invalid_image" || error.code === "layer_too_large")
    ? new BerthError("invalid_archive", error.message, { cause: error })
    : error;
}
