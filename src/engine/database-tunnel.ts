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

/** Whether the API knows the host, and lets it through. @throws BerthError `unavailable` */
export async function isKnown(api: ApiAccess): Promise<boolean> {
  try {
    (await openTunnel(api)).destroy();
    return true;
  } catch (error) {
    if (error instanceof BerthError && error.code === "unauthorized") return false;
    throw error;
  }
}

/**
 * One connection to the database through the API.
 * @throws BerthError `unauthorized` when the API does not know the host, `unavailable`
 */
function openTunnel(api: ApiAccess): Promise<Duplex> {
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
    const unknown = response.statusCode === 401;
    reject(
      unknown
        ? new BerthError("unauthorized", `The API at ${api.url} does not know this host.`)
        : new BerthError(
            "unavailable",
            `The API at ${api.url} passes no connection on (${String(response.statusCode)}).`,
          ),
    );
  });
  sent.on("error", (error) => {
    clearTimeout(late);
    reject(internalError(api, error));
  });
  sent.end();
  return promise;
}
