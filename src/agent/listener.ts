import { chmod, chown, rm, stat } from "node:fs/promises";
import { createServer, type RequestListener } from "node:http";
import { createServer as createTlsServer } from "node:https";
import type { ListenOptions, Server } from "node:net";
import { keyedServer } from "../core/keyed-tls.ts";
import type { AgentListen } from "../engine/host-registration.ts";

/**
 * Listens on a Unix socket that only root and the owner of `blobsDir` (the API's user) can open, or for other machines by
 * TLS with the agent's key (core/keyed-tls.ts), for who knows it.
 * @param load called by the first request: what answers requests takes a third of the worker's time to load, and most
 * starts are over before somebody asks
 */
export async function listenAgent(
  load: () => Promise<RequestListener>,
  at: AgentListen,
  host: { id: string; key: string; blobsDir: string },
): Promise<Server> {
  if ("socket" in at) {
    await rm(at.socket, { force: true });
    const server = createServer(loadedOnce(load));
    await listening(server, at.socket);
    const { uid, gid } = await stat(host.blobsDir);
    await chown(at.socket, uid, gid);
    await chmod(at.socket, 0o600);
    return server;
  }
  const keys = keyedServer((identity) => (identity === host.id ? host.key : null));
  const server = createTlsServer(keys, loadedOnce(load));
  await listening(server, at);
  return server;
}

function loadedOnce(load: () => Promise<RequestListener>): RequestListener {
  let loaded: Promise<RequestListener> | null = null;
  return (request, response) => {
    loaded ??= load();
    loaded.then(
      (listener) => {
        listener(request, response);
      },
      () => {
        // The clone is damaged, or being replaced; the next request tries again.
        loaded = null;
        response.writeHead(500).end();
      },
    );
  };
}

async function listening(server: Server, at: ListenOptions | string): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen(at, resolve);
  });
}
