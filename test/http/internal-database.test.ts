import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import type { Server } from "node:http";
import { type AddressInfo, connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Duplex } from "node:stream";
import { Hono } from "hono";
import postgres from "postgres";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import type { ApiAccess } from "../../src/core/api-access.ts";
import { newId } from "../../src/core/ids.ts";
import { keyedServer } from "../../src/core/keyed-tls.ts";
import { hostKey, identityKey } from "../../src/core/keys.ts";
import { driverOptions, openClient } from "../../src/db/client.ts";
import { topics, Wakeups } from "../../src/db/wakeups.ts";
import { databaseWay, openTunnel, serveDatabase } from "../../src/engine/database-tunnel.ts";
import { passDatabase } from "../../src/routes/internal/database.ts";
import { authenticateHost } from "../../src/routes/internal/host-auth.ts";
import { closeServer, listen } from "../../src/routes/listener.ts";
import { ask, createApi, type TestApi } from "../support/api.ts";

// A host's way to a database that is on a Unix socket of the API's machine.
let api: TestApi;
let directory: string;
let host: string;
let access: ApiAccess;

const socketOf = (dir: string) => `${dir}/.s.PGSQL.5432`;

const databaseUrl = () =>
  `postgres://berth_api@${encodeURIComponent(inject("postgresSocketDir"))}/${api.database.name}`;

/** The internal listener of an instance of the API. */
interface Instance {
  port: number;
  close(): Promise<void>;
}

let instance: Instance;

async function openInstance(wakeups: Wakeups, port = 0): Promise<Instance> {
  const { sql, secretKey } = api.services;
  const tls = keyedServer((identity) => identityKey(secretKey, identity));
  const server: Server = await listen(new Hono(), { host: "127.0.0.1", port }, { tls });
  const end = passDatabase(server, socketOf(inject("postgresSocketDir")), {
    authenticate: (bearer) => authenticateHost(sql, secretKey, bearer),
    onForgotten: (hostId, wake) => wakeups.subscribe(topics.forgotten(hostId), wake),
  });
  return {
    port: (server.address() as AddressInfo).port,
    close() {
      end();
      return closeServer(server, 0);
    },
  };
}

const credential = (id: string) => `${id}.${hostKey(api.services.secretKey, id)}`;
const accessTo = (id: string, port = instance.port): ApiAccess => ({
  url: `tls://127.0.0.1:${String(port)}`,
  ca: null,
  credential: credential(id),
});

beforeAll(async () => {
  api = await createApi(inject("postgresSocketDir"));
  await api.project("default");
  directory = await mkdtemp(join(tmpdir(), "berth-tunnel-"));
  instance = await openInstance(api.services.wakeups);
  host = await api.host();
  access = accessTo(host);
});
afterAll(async () => {
  await instance.close();
  await api.close();
  await rm(directory, { recursive: true, force: true });
});

test("a host's queries, notifications and large rows go through; when the API is back, so is the database", async () => {
  const local = await serveDatabase(access, directory);
  const sql = postgres({
    ...driverOptions,
    path: socketOf(directory),
    username: "postgres",
    database: api.database.name,
    max: 3,
    connect_timeout: 5,
  });
  expect(await sql`select id from hosts`).toEqual([{ id: host }]);
  const [row] = await sql<{ text: string }[]>`select repeat('x', 5000000) as text`;
  expect(row?.text.length).toBe(5_000_000);
  let notified = 0;
  await sql.listen("tunnel", () => notified++);
  await api.database.owner`select pg_notify('tunnel', '')`;
  await expect.poll(() => notified).toBe(1);

  const { port } = instance;
  await instance.close();
  await expect(sql`select 1 as one`).rejects.toThrow();
  instance = await openInstance(api.services.wakeups, port);
  await expect.poll(() => sql`select 1 as one`.catch(() => null)).toEqual([{ one: 1 }]);
  await expect
    .poll(async () => {
      await api.database.owner`select pg_notify('tunnel', '')`;
      return notified;
    })
    .toBeGreaterThan(1);
  await sql.end({ timeout: 1 });
  local.close();
});

test("is open to hosts that the API knows, and to nobody else", async () => {
  expect(await databaseWay(access)).toBe("passed");
  const forgotten = newId("host");
  expect(await databaseWay({ ...access, credential: credential(forgotten) })).toBe("unknown");
  // Its key is right for the connection, and another host's for the request.
  expect(await databaseWay({ ...access, credential: `${forgotten}.${hostKey(api.services.secretKey, host)}` })).toBe(
    "unknown",
  );
  expect(await databaseWay({ ...access, credential: `${host}.${"a".repeat(43)}` })).toBe("unknown");
  await expect(databaseWay({ ...access, url: "tls://127.0.0.1:1" })).rejects.toMatchObject({ code: "unavailable" });
  const plain = connect(instance.port, "127.0.0.1");
  plain.write("GET /internal/database HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: berth-database\r\n\r\n");
  plain.on("error", () => undefined);
  let answered = "";
  plain.on("data", (chunk: Buffer) => (answered += chunk.toString("latin1")));
  await once(plain, "close");
  expect(answered).not.toContain("HTTP/1.1");
});

test("a host that is forgotten loses its connections at once, whichever instance of the API has them", async () => {
  const listener = openClient({ url: databaseUrl() }, "api", 1);
  const wakeups = await Wakeups.open(listener);
  const second = await openInstance(wakeups);
  // Connections on which Postgres waits for a login: it has no reason of its own to end one.
  const [known, forgotten, unheard] = [await api.host(), await api.host(), await api.host()];
  const sockets = await Promise.all([
    ...[known, forgotten, unheard].map((id) => openTunnel(accessTo(id))),
    openTunnel(accessTo(forgotten, second.port)),
  ]);
  const [ofKnown, here, ofUnheard, there] = sockets as [Duplex, Duplex, Duplex, Duplex];
  for (const socket of sockets) socket.on("error", () => undefined).resume();
  // A row that goes by itself wakes nobody: what follows is the wake-up's doing.
  await api.database.owner`delete from hosts where id = ${unheard}`;

  const forget = (query: string) => ask(api.app, api.operator, "DELETE", `/v1/hosts/${forgotten}${query}`);
  expect(await forget("")).toMatchObject({ status: 409, body: { code: "invalid_state" } });
  const cut = Promise.all([once(here, "close"), once(there, "close")]);
  expect((await forget("?force=true")).status).toBe(204);
  await cut;
  expect([ofKnown.closed, ofUnheard.closed]).toEqual([false, false]);

  const heard = once(ofUnheard, "close");
  await api.database.owner`select pg_notify('berth', ${topics.forgotten(unheard)})`;
  await heard;
  expect(ofKnown.closed).toBe(false);
  ofKnown.destroy();
  await second.close();
  await listener.end({ timeout: 1 });
});

test("a host whose database is not the API's is told so, and whether it is known", async () => {
  const { sql, secretKey } = api.services;
  const tls = keyedServer((identity) => identityKey(secretKey, identity));
  const server = await listen(new Hono(), { host: "127.0.0.1", port: 0 }, { tls });
  passDatabase(server, null, {
    authenticate: (bearer) => authenticateHost(sql, secretKey, bearer),
    onForgotten: () => () => undefined,
  });
  const { port } = server.address() as AddressInfo;
  expect(await databaseWay(accessTo(host, port))).toBe("elsewhere");
  expect(await databaseWay(accessTo(newId("host"), port))).toBe("unknown");
  await closeServer(server, 0);
});
