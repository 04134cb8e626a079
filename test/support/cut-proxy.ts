import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";

/** A TCP proxy on loopback that cuts connections off. */
export interface CutProxy {
  port: number;
  /** Cuts the next connections after so many bytes from the client or from the server, one number a connection. */
  cutNext: (...after: { sent?: number; received?: number }[]) => void;
  /** Connections so far. */
  connections: () => number;
  close: () => Promise<void>;
}

export async function startCutProxy(target: number): Promise<CutProxy> {
  const sockets = new Set<Socket>();
  const cuts: { sent?: number; received?: number }[] = [];
  let count = 0;
  const server = createServer((client) => {
    count++;
    const cut = cuts.shift() ?? {};
    const upstream = connect(target, "127.0.0.1");
    const end = () => {
      client.destroy();
      upstream.destroy();
    };
    for (const socket of [client, upstream]) {
      sockets.add(socket);
      socket.on("error", end);
      socket.on("close", () => {
        sockets.delete(socket);
        end();
      });
    }
    forward(client, upstream, cut.sent ?? Number.POSITIVE_INFINITY, end);
    forward(upstream, client, cut.received ?? Number.POSITIVE_INFINITY, end);
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    port: (server.address() as AddressInfo).port,
    cutNext: (...after) => void cuts.push(...after),
    connections: () => count,
    close: async () => {
      for (const socket of sockets) socket.destroy();
      server.close();
      await once(server, "close");
    },
  };
}

/** So many bytes arrive, and then the connection breaks. */
function forward(from: Socket, to: Socket, bytes: number, end: () => void): void {
  let left = bytes;
  from.on("data", (chunk: Buffer) => {
    const part = chunk.subarray(0, left);
    left -= part.length;
    if (left <= 0) to.write(part, end);
    else if (!to.write(part)) {
      from.pause();
      to.once("drain", () => from.resume());
    }
  });
}
