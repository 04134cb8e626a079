import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import type { KnownFile } from "../../src/core/build-request.ts";
import { download, downloadLimits, downloadUnless } from "../../src/engine/build/download.ts";
import { HttpClient } from "../../src/image/http.ts";
import { OutboundPolicy } from "../../src/image/outbound.ts";

const directory = mkdtempSync(join(tmpdir(), "berth-download-test-"));
const asked: (string | undefined)[] = [];
const pages: Record<string, (response: ServerResponse, request: IncomingMessage) => void> = {
  "/file": (response) => response.writeHead(200, { "last-modified": "Tue, 14 Nov 2023 22:13:20 GMT" }).end("hello"),
  "/tagged": (response, { headers }) => {
    const same = headers["if-none-match"] === '"v1"';
    response.writeHead(same ? 304 : 200, { etag: '"v1"' }).end(same ? undefined : "hello");
  },
  "/dated": (response, { headers }) => {
    const same = headers["if-modified-since"] === "Tue, 14 Nov 2023 22:13:20 GMT";
    response.writeHead(same ? 304 : 200, { "last-modified": "Tue, 14 Nov 2023 22:13:20 GMT" });
    response.end(same ? undefined : "hello");
  },
  "/just-now": (response) => response.writeHead(200, { "last-modified": new Date().toUTCString() }).end("hello"),
  "/strange-tag": (response) => response.writeHead(200, { etag: `"${"x".repeat(300)}"` }).end("hello"),
  "/always-304": (response) => response.writeHead(304).end(),
  "/tag-moved": (response) => response.writeHead(302, { location: "/tagged" }).end(),
  "/moved": (response) => response.writeHead(302, { location: "/file" }).end(),
  "/round": (response) => response.writeHead(302, { location: "/round" }).end(),
  "/inside": (response) => response.writeHead(302, { location: `http://127.0.0.2:${String(port)}/file` }).end(),
  "/elsewhere": (response) => response.writeHead(302, { location: "file:///etc/passwd" }).end(),
  "/missing": (response) => response.writeHead(404).end(),
  "/broken": (response) => response.writeHead(503).end(),
  "/endless": (response) => {
    const more = () => {
      if (!response.destroyed) response.write(Buffer.alloc(65_536), more);
    };
    more();
  },
  "/cut": (response) => {
    response.writeHead(200, { "content-length": "10" });
    response.write("half", () => response.destroy());
  },
  "/silent": () => undefined,
};
const server = createServer((request, response) => {
  const { pathname } = new URL(request.url ?? "/", "http://server");
  asked.push(pathname);
  (pages[pathname] ?? pages["/missing"])?.(response, request);
});
let port = 0;
const clients: HttpClient[] = [];

beforeAll(async () => {
  await new Promise<void>((listening) => server.listen(0, "127.0.0.1", listening));
  ({ port } = server.address() as AddressInfo);
});
afterEach(() => expect(readdirSync(directory)).toEqual([]));
afterAll(() => {
  for (const client of clients) client.close();
  server.closeAllConnections();
  server.close();
  rmSync(directory, { recursive: true, force: true });
});

/** Downloads with this one address allowed, and reads what came. */
async function get(path: string, more: { limits?: Partial<typeof downloadLimits>; signal?: AbortSignal } = {}) {
  const client = new HttpClient(new OutboundPolicy(["127.0.0.1/32"]), 5_000);
  clients.push(client);
  const signal = more.signal ?? new AbortController().signal;
  const limits = { ...downloadLimits, ...more.limits };
  const { file, ...found } = await download(
    `http://127.0.0.1:${String(port)}${path}`,
    join(directory, "spool"),
    client,
    signal,
    limits,
  );
  const content = await file.readFile("utf8");
  await file.close();
  return { ...found, content };
}

test("a file comes with its digest and time, also behind redirects", async () => {
  const sha256 = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
  const compared = { etag: null, modified: 1_700_000_000, comparable: true };
  const expected = { sizeBytes: 5, sha256, content: "hello", ...compared };
  expect(await get("/file")).toEqual(expected);
  expect(await get("/moved?token=secret")).toEqual(expected);
});

test.each([
  ["/missing?token=secret", "invalid_context", /\/missing" can't be downloaded: its server answers 404\.$/],
  ["/broken", "download_failed", /answers 503/],
  ["/cut", "download_failed", /broke off/],
  ["/round", "invalid_context", /redirects without end/],
  ["/elsewhere", "invalid_context", /redirects away from https/],
])("%s: %s", async (path, code, message) => {
  const failed = get(path);
  await expect(failed).rejects.toMatchObject({ code });
  await expect(failed).rejects.toThrow(message);
});

test("an address that is not allowed is not connected to, by a redirect either", async () => {
  await expect(get("/inside")).rejects.toMatchObject({ code: "address_refused" });
  asked.length = 0;
  const closed = new HttpClient(new OutboundPolicy([]), 5_000);
  const signal = new AbortController().signal;
  const direct = download(`http://127.0.0.1:${String(port)}/file`, join(directory, "spool"), closed, signal);
  await expect(direct).rejects.toMatchObject({ code: "address_refused" });
  expect(asked).toEqual([]);
});

test("size and time are bounded, and a cancelled build does not wait", async () => {
  const endless = get("/endless", { limits: { bytes: 1_000_000 } });
  await expect(endless).rejects.toMatchObject({ code: "invalid_context" });
  await expect(endless).rejects.toThrow(/more than 1000000 bytes/);
  const silent = get("/silent", { limits: { milliseconds: 50 } });
  await expect(silent).rejects.toMatchObject({ code: "download_failed" });
  await expect(silent).rejects.toThrow(/takes too long/);
  const reason = new Error("cancelled");
  const abort = new AbortController();
  const waiting = get("/silent", { signal: abort.signal });
  abort.abort(reason);
  await expect(waiting).rejects.toBe(reason);
});

/** What is known of a file after one download; null: nothing that its server can be asked. */
async function known(path: string): Promise<KnownFile | null> {
  const { etag, modified, sha256, sizeBytes, comparable } = await get(path);
  return comparable ? { etag, modified, sha256, sizeBytes } : null;
}

async function still(path: string, file: KnownFile): Promise<boolean> {
  const client = new HttpClient(new OutboundPolicy(["127.0.0.1/32"]), 5_000);
  clients.push(client);
  const url = `http://127.0.0.1:${String(port)}${path}`;
  const found = await downloadUnless(file, url, join(directory, "spool"), client, new AbortController().signal);
  await found?.file.close();
  return found === null;
}

test("a known file is compared by its tag, else by its time if that was old then, and not downloaded again", async () => {
  for (const path of ["/tagged", "/dated", "/tag-moved"]) {
    const file = await known(path);
    if (file === null) throw new Error(`${path} can't be compared`);
    expect(await still(path, file)).toBe(true);
    expect(await still(path, { ...file, etag: file.etag === null ? null : '"v0"', modified: 1 })).toBe(false);
  }
  for (const path of ["/just-now", "/strange-tag"]) expect(await known(path)).toBeNull();
  // Nobody asked it to compare.
  await expect(get("/always-304")).rejects.toMatchObject({ code: "invalid_context" });
});
