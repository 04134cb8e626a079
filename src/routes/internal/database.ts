import type { IncomingMessage, Server } from "node:http";
import { connect } from "node:net";
import type { Duplex } from "node:stream";
import { databaseTunnel } from "../../core/api-access.ts";

/** Who may have connections passed on. */
export interface Passage {
  /** The host that a bearer credential belongs to; null: nobody's. */
  authenticate: (bearer: string) => Promise<string | null>;
  /** Calls `wake` when the host may have been forgotten, until the returned function is called. */
  onForgotten: (hostId: string, wake: () => void) => () => void;
}

/** How often it is asked again whether a host is known, in case a notification was lost. */
const recheckMs = 30_000;

/**
 * Passes connections of hosts on to the embedded database, whose socket no other machine reaches: an upgrade of HTTP with
 * the host's credential, and then bytes in both directions. Who it is to the database, the host has to show that itself.
 * A host that is forgotten loses them at once.
 * The returned function ends them all: the server no longer counts connections that were upgraded.
 * @param socket null: the database is one that hosts reach by themselves; then they are only told whether they are known
 */
export function passDatabase(server: Server, socket: string | null, passage: Passage): () => void {
  const passed = new Set<Duplex>();
  const answer = async (request: IncomingMessage, client: Duplex, head: Buffer) => {
    const { authorization = "", upgrade } = request.headers;
    if (request.url !== databaseTunnel.path || upgrade !== databaseTunnel.protocol) {
      refuse(client, 404, "not_found");
      return;
    }
    const bearer = /^Bearer ([\x21-\x7e]{1,512})$/i.exec(authorization)?.[1] ?? "";
    const hostId = await passage.authenticate(bearer);
    if (hostId === null) {
      refuse(client, 401, "unauthorized");
      return;
    }
    if (socket === null) {
      refuse(client, 404, "not_found");
      return;
    }
    endWhenForgotten(client, hostId, bearer, passage);
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

/** Looked at once more when the watch has begun: the host may have been forgotten before. */
function endWhenForgotten(client: Duplex, hostId: string, bearer: string, passage: Passage): void {
  const check = () => {
    passage.authenticate(bearer).then(
      (known) => {
        if (known === null) client.destroy();
      },
      () => undefined, // The database is away: the next check tells.
    );
  };
  const unwatch = passage.onForgotten(hostId, check);
  const timer = setInterval(check, recheckMs).unref();
  client.once("close", () => {
    unwatch();
    clearInterval(timer);
  });
  check();
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
