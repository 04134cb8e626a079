import type { IncomingMessage, Server } from "node:http";
import { connect } from "node:net";
import type { Duplex } from "node:stream";
import { databaseTunnel } from "../../core/api-access.ts";

/**
 * Passes connections of hosts on to the embedded database, whose socket no other machine reaches: an upgrade of HTTP with
 * the host's credential, and then bytes in both directions. Who it is to the database, the host has to show that itself.
 * The returned function ends them all: the server no longer counts connections that were upgraded.
 */
export function passDatabase(
  server: Server,
  socket: string,
  authenticate: (bearer: string) => Promise<string | null>,
): () => void {
  const passed = new Set<Duplex>();
  const answer = async (request: IncomingMessage, client: Duplex, head: Buffer) => {
    const { authorization = "", upgrade } = request.headers;
    if (request.url !== databaseTunnel.path || upgrade !== databaseTunnel.protocol) {
      refuse(client, 404, "not_found");
      return;
    }
    const bearer = /^Bearer ([\x21-\x7e]{1,512})$/i.exec(authorization)?.[1] ?? "";
    if ((await authenticate(bearer)) === null) {
      refuse(client, 401, "unauthorized");
      return;
    }
    const database = connect(socket);
    database.once("error", () => refuse(client, 503, "unavailable"));
    database.once("connect", () => {
      client.write(
        `HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: ${databaseTunnel.protocol}\r\n\r\n`,
      );
      if (head.length > 0) database.write(head);
      join(client, database);
    });
  };
  server.on("upgrade", (request: IncomingMessage, client: Duplex, head: Buffer) => {
    passed.add(client);
    client.on("close", () => passed.delete(client));
    client.on("error", () => client.destroy());
    answer(request, client, head).catch(() => refuse(client, 503, "unavailable"));
  });
  return () => {
    for (const client of passed) client.destroy();
  };
}

function refuse(client: Duplex, status: number, code: string): void {
  const body = JSON.stringify({ code });
  const headers = `Content-Type: application/json\r\nContent-Length: ${String(body.length)}\r\nConnection: close`;
  client.end(`HTTP/1.1 ${String(status)} ${code}\r\n${headers}\r\n\r\n${body}`);
}

/** Two ends of one connection: what ends or breaks the one ends the other. */
function join(a: Duplex, b: Duplex): void {
  for (const [from, to] of [
    [a, b],
    [b, a],
  ] as const) {
    from.pipe(to);
    from.on("error", () => to.destroy());
    from.on("close", () => to.destroy());
  }
}
