import type { Server } from "node:http";
import { createAdaptorServer } from "@hono/node-server";
import type { App } from "./context.ts";

/** How long a client may take, in milliseconds: to send its headers, its whole request, its next one on a connection. */
export interface Patience {
  headersMs: number;
  requestMs: number;
  keepAliveMs: number;
}

const patience: Patience = { headersMs: 15_000, requestMs: 60 * 60_000, keepAliveMs: 65_000 };
const maxConnections = 20_000;

/** Serves the app on an address. @throws Error when the address can't be used */
export async function listen(
  app: App,
  address: { host: string; port: number },
  { headersMs, requestMs, keepAliveMs }: Patience = patience,
): Promise<Server> {
  const server = createAdaptorServer({
    fetch: app.fetch,
    serverOptions: {
      headersTimeout: headersMs,
      requestTimeout: requestMs,
      keepAliveTimeout: keepAliveMs,
      connectionsCheckingInterval: Math.min(5_000, headersMs),
    },
  }) as Server;
  server.maxConnections = maxConnections;
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen(address.port, address.host, resolve);
  });
  return server;
}

/** Takes no more connections, lets requests that run finish for a while, then cuts them off. */
export async function closeServer(server: Server, graceMs = 5_000): Promise<void> {
  const closed = new Promise((resolve) => server.close(resolve));
  server.closeIdleConnections();
  const late = setTimeout(() => server.closeAllConnections(), graceMs);
  await closed;
  clearTimeout(late);
}
