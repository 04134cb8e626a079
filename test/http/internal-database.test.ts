import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import type { Server } from "node:http";
import { type AddressInfo, connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Hono } from "hono";
import postgres from "postgres";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import type { ApiAccess } from "../../src/core/api-access.ts";
import { newId } from "../../src/core/ids.ts";
import { keyedServer } from "../../src/core/keyed-tls.ts";
import { hostKey, identityKey } from "../../src/core/keys.ts";
import { driverOptions } from "../../src/db/client.ts";
import { isKnown, serveDatabase } from "../../src/engine/database-tunnel.ts";
import { passDatabase } from "../../src/routes/internal/database.ts";
import { authenticateHost } from "../../src/routes/internal/host-auth.ts";
import { closeServer, listen } from "../../src/routes/listener.ts";
import { createApi, type TestApi } from "../support/api.ts";

// A host's way to a database that is on a Unix socket of the API's machine.
let api: TestApi;
let directory: string;
let server: Server;
let host: string;
let access: ApiAccess;

const socketOf = (dir: string) => `${dir}/.s.PGSQL.5432`;

let close: () => Promise<void>;

async function openServer(port = 0): Promise<Server> {
  const { sql, secretKey } = api.services;
  const tls = keyedServer((identity) => identityKey(secretKey, identity));
  const opened = await listen(new Hono(), { host: "127.0.0.1", port }, { tls });
  const end = passDatabase(opened, socketOf(inject("postgresSocketDir")), (bearer) =>
    authenticateHost(sql, secretKey, bearer),
  );
  close = () => {
    end();
    return closeServer(opened, 0);
  };
  return opened;
}

const credential = (id: string) => `${id}.${hostKey(api.services.secretKey, id)}`;
const portOf = () => (server.address() as AddressInfo).port;

beforeAll(async () => {
  api = await createApi(inject("postgresSocketDir"));
  directory = await mkdtemp(join(tmpdir(), "berth-tunnel-"));
  server = await openServer();
  host = await api.host();
  access = { url: `tls://127.0.0.1:${String(portOf())}`, ca: null, credential: credential(host) };
});
afterAll(async () => {
  await close();
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

  const port = portOf();
  await close();
  await expect(sql`select 1 as one`).rejects.toThrow();
  server = await openServer(port);
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
  expect(await isKnown(access)).toBe(true);
  const forgotten = newId("host");
  expect(await isKnown({ ...access, credential: credential(forgotten) })).toBe(false);
  // Its key is right for the connection, and another host's for the request.
  expect(await isKnown({ ...access, credential: `${forgotten}.${hostKey(api.services.secretKey, host)}` })).toBe(false);
  expect(await isKnown({ ...access, credential: `${host}.${"a".repeat(43)}` })).toBe(false);
  await expect(isKnown({ ...access, url: "tls://127.0.0.1:1" })).rejects.toMatchObject({ code: "unavailable" });
  const plain = connect(portOf(), "127.0.0.1");
  plain.write("GET /internal/database HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: berth-database\r\n\r\n");
  plain.on("error", () => undefined);
  let answered = "";
  plain.on("data", (chunk: Buffer) => (answered += chunk.toString("latin1")));
  await once(plain, "close");
  expect(answered).not.toContain("HTTP/1.1");
});
