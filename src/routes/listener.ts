import type { Server } from "node:http";
import { createServer as createTlsServer } from "node:https";
import { createAdaptorServer, type Http2Bindings, type HttpBindings } from "@hono/node-server";
import type { KeyedServer } from "../core/keyed-tls.ts";

/** How long a client may take, in milliseconds: to send its headers, its whole request, its next one on a connection. */
export interface Patience {
  headersMs: number;
  requestMs: number;
  keepAliveMs: number;
}

const usualPatience: Patience = { headersMs: 15_000, requestMs: 60 * 60_000, keepAliveMs: 65_000 };
const maxConnections = 20_000;

/** A certificate with its chain, and its key, both PEM. */
export interface TlsIdentity {
  cert: string;
  key: string;
}

/** Serves the app on an address, over TLS when its options are given: a certificate, or keys (core/keyed-tls.ts). @throws Error when the address can't be used */
export async function listen(
  app: { fetch: (request: Request, node: HttpBindings | Http2Bindings) => Response | Promise<Response> },
  address: { host: string; port: number },
  options: { patience?: Patience; tls?: TlsIdentity | KeyedServer | null } = {},
): Promise<Server> {
  const { patience: { headersMs, requestMs, keepAliveMs } = usualPatience, tls = null } = options;
  const serverOptions = {
    headersTimeout: headersMs,
    requestTimeout: requestMs,
    keepAliveTimeout: keepAliveMs,
    connectionsCheckingInterval: Math.min(5_000, headersMs),
  };
  const server = createAdaptorServer(
    tls === null
      ? { fetch: app.fetch, serverOptions }
      : { fetch: app.fetch, createServer: createTlsServer, serverOptions: { ...serverOptions, ...tls } },
  ) as Server;
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
