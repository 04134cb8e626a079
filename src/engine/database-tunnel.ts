import { chmod, mkdir, rm } from "node:fs/promises";
import { request as httpRequest } from "node:http";
import { request as httpsRequest } from "node:https";
import { createServer, type Server, type Socket } from "node:net";
import type { Duplex } from "node:stream";
import { type ApiAccess, databaseTunnel, transportOf } from "../core/api-access.ts";
import { BerthError } from "../core/errors.ts";
import { internalError } from "./internal-api.ts";

const answerMs = 15_000;

/**
 * Serves the API's embedded database on a Unix socket in `directory`, as Postgres itself would: each connection is passed on
 * through the internal listener, and one that can't be is closed.
 */
export async function serveDatabase(api: ApiAccess, directory: string): Promise<Server> {
  await mkdir(directory, { recursive: true });
  await chmod(directory, 0o700);
  const path = `${directory}/.s.PGSQL.5432`;
  await rm(path, { force: true });
  const server = createServer({ pauseOnConnect: true }, (client: Socket) => {
    client.on("error", () => client.destroy());
    openTunnel(api).then(
      (far) => {
        far.on("error", () => client.destroy());
        far.on("close", () => client.destroy());
        client.on("close", () => far.destroy());
        far.pipe(client);
        client.pipe(far);
      },
      () => client.destroy(),
    );
  });
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen(path, resolve);
  });
  return server;
}

/**
 * What the API says of a host: `unknown`; that it passes its connections on (`passed`); or that its database is one that
 * hosts reach by themselves (`elsewhere`). @throws BerthError `unavailable`
 */
export async function databaseWay(api: ApiAccess): Promise<"unknown" | "passed" | "elsewhere"> {
  try {
    (await openTunnel(api)).destroy();
    return "passed";
  } catch (error) {
    if (error instanceof BerthError && error.code === "unauthorized") return "unknown";
    if (error instanceof BerthError && error.code === "not_found") return "elsewhere";
    throw error;
  }
}

/**
 * One connection to the database through the API.
 * @throws BerthError `unauthorized` when the API does not know the host, `not_found` when it passes none on, `unavailable`
 */
export function openTunnel(api: ApiAccess): Promise<Duplex> {
  const { url, tls } = transportOf(api);
  const send = url.protocol === "https:" ? httpsRequest : httpRequest;
  const { promise, resolve, reject } = Promise.withResolvers<Duplex>();
  const sent = send(new URL(databaseTunnel.path, url), {
    headers: {
      Authorization: `Bearer ${api.credential}`,
      Connection: "Upgrade",
      Upgrade: databaseTunnel.protocol,
    },
    ...tls,
  });
  const late = setTimeout(() => sent.destroy(new Error("no answer")), answerMs);
  sent.on("upgrade", (_, socket, head) => {
    clearTimeout(late);
    socket.setNoDelay(true);
    if (head.length > 0) socket.unshift(head);
    resolve(socket);
  });
  sent.on("response", (response) => {
    clearTimeout(late);
    response.resume();
    const code = ({ 401: "unauthorized", 404: "not_found" } as const)[response.statusCode ?? 0] ?? "unavailable";
    const refused = code === "unauthorized" ? "does not know this host" : "passes no connection on";
    reject(new BerthError(code, `The API at ${api.url} ${refused} (${String(response.statusCode)}).`));
  });
  sent.on("error", (error) => {
    clearTimeout(late);
    reject(internalError(api, error));
  });
  sent.end();
  return promise;
}
