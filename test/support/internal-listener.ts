import type { AddressInfo } from "node:net";
import { pino } from "pino";
import type { ClusterStore } from "../../src/image/blobs.ts";
import { createInternalApp } from "../../src/routes/internal/app.ts";
import { addBlobs } from "../../src/routes/internal/blobs.ts";
import { closeServer, listen, type TlsIdentity } from "../../src/routes/listener.ts";

/** The API's internal listener on loopback; `credentials` are the hosts' by what they show. */
export interface InternalListener {
  port: number;
  url: string;
  close: () => Promise<void>;
}

export async function startInternalListener(
  blobs: ClusterStore,
  credentials: Record<string, string>,
  tls: TlsIdentity | null = null,
): Promise<InternalListener> {
  const app = createInternalApp({
    authenticate: (bearer) => Promise.resolve(credentials[bearer] ?? null),
    log: pino({ level: "silent" }),
  });
  addBlobs(app, blobs);
  const server = await listen(app, { host: "127.0.0.1", port: 0 }, { tls });
  const { port } = server.address() as AddressInfo;
  return {
    port,
    url: `${tls === null ? "http" : "https"}://127.0.0.1:${String(port)}`,
    close: () => closeServer(server, 100),
  };
}
