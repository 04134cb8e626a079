import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { Readable } from "node:stream";
import { buffer } from "node:stream/consumers";
import { afterEach, describe, expect, test } from "vitest";
import { parsePushDestination } from "../../src/core/reference.ts";
import { digestOf } from "../../src/image/digest.ts";
import { mediaTypes } from "../../src/image/manifest.ts";
import type { PushTarget } from "../../src/image/push-target.ts";
import { Registry } from "../../src/image/registry.ts";
import { breaking } from "../support/image.ts";

// What registries do that Debian's does not.

type Handler = (request: IncomingMessage, response: ServerResponse) => void | Promise<void>;

const servers: Server[] = [];
const registries: Registry[] = [];
afterEach(() => {
  for (const registry of registries.splice(0)) registry.close();
  for (const server of servers.splice(0)) {
    server.closeAllConnections();
    server.close();
  }
});

/** A registry on loopback. Returns its `host:port`. */
async function serve(handler: Handler): Promise<string> {
  const server = createServer((request, response) => void handler(request, response)).listen(0, "127.0.0.1");
  servers.push(server);
  await once(server, "listening");
  return `127.0.0.1:${String((server.address() as AddressInfo).port)}`;
}

const auth = { username: "ada", password: "hunter2" };

function target(host: string, more: { insecure?: string[]; sources?: string[] } = {}): PushTarget {
  const registry = new Registry({
    mirrors: new Map([[host, "http://127.0.0.1:1"]]),
    insecure: new Set(more.insecure ?? [host]),
    allow: [],
    idleMs: 5000,
    retry: { attempts: 3, firstDelayMs: 1 },
  });
  registries.push(registry);
  return registry.target(parsePushDestination(`${host}/team/app:1`), auth, more.sources ?? []);
}

const content = randomBytes(3_000_000);
const blob = { digest: digestOf(content), bytes: content.length, open: () => Readable.from([content]) };
const { signal } = new AbortController();

/** Answers HEAD with 404, POST with this location, PUT by `put`. */
const registryWith =
  (location: string, put: Handler): Handler =>
  (request, response) => {
    if (request.method === "HEAD") response.writeHead(404).end();
    else if (request.method === "POST") response.writeHead(202, { location }).end();
    else return put(request, response);
  };

describe("an upload", () => {
  test.each(["/up?state=a%2Fb", "up?state=a%2Fb"])("goes to a location relative as %s", async (location) => {
    let seen: { url: string | undefined; body: string; length: string | undefined } | null = null;
    const host = await serve(
      registryWith(location, async (request, response) => {
        seen = { url: request.url, body: digestOf(await buffer(request)), length: request.headers["content-length"] };
        response.writeHead(201).end();
      }),
    );
    expect(await target(host).place(blob, null, signal)).toBe("uploaded");
    const path = location.startsWith("/") ? "/up" : "/v2/team/app/blobs/uploads/up";
    const query = `state=a%2Fb&digest=${encodeURIComponent(blob.digest)}`;
    expect(seen).toEqual({ url: `${path}?${query}`, body: blob.digest, length: String(content.length) });
  });

  test("to another host carries no credentials, and to an internal one does not go", async () => {
    const seen: (string | undefined)[] = [];
    const other = await serve(async (request, response) => {
      seen.push(request.headers.authorization);
      await buffer(request);
      response.writeHead(201).end();
    });
    const host = await serve((request, response) => {
      if (request.headers.authorization === undefined) {
        response.writeHead(401, { "www-authenticate": 'Basic realm="x"' }).end();
      } else {
        return registryWith(`http://u:p@${other}/up`, () => undefined)(request, response);
      }
    });
    await expect(target(host).place(blob, null, signal)).rejects.toMatchObject({ code: "address_refused" });
    expect(seen).toEqual([]);
    await target(host, { insecure: [host, other] }).place(blob, null, signal);
    expect(seen).toEqual([undefined]);
  });

  test("that fails in passing is made again, unless the blob is there by then", async () => {
    const asked: string[] = [];
    let stored = false;
    const host = await serve(async (request, response) => {
      asked.push(request.method ?? "");
      if (request.method === "HEAD") response.writeHead(stored ? 200 : 404).end();
      else if (request.method === "POST") {
        response.writeHead(asked.length < 3 ? 429 : 202, { "retry-after": "0", location: "/up" }).end();
      } else {
        await buffer(request);
        stored = true;
        response.writeHead(500).end();
      }
    });
    expect(await target(host).place(blob, null, signal)).toBe("present");
    expect(asked).toEqual(["HEAD", "POST", "HEAD", "POST", "PUT", "HEAD"]);
  });

  test.each<[string, number, string]>([
    ["a lasting error, with the registry's code", 413, "registry_error"],
    ["a refusal", 403, "registry_denied"],
    ["500, again and again", 500, "registry_error"],
  ])("refused before it was read: %s", async (_, status, code) => {
    const host = await serve(
      registryWith("/up", (__, response) => {
        // The body is not read, and the connection closed under it.
        response.writeHead(status, { connection: "close" }).end('{"errors":[{"code":"SIZE_INVALID"}]}', () => {
          response.destroy();
        });
      }),
    );
    const error: unknown = await target(host)
      .place(blob, null, signal)
      .catch((thrown: unknown) => thrown);
    // The answer may be lost when the connection is closed under the body.
    expect([code, "registry_unreachable"]).toContain((error as { code?: string }).code);
    expect(String(error)).not.toContain("hunter2");
  });

  test("whose source fails is no fault of the registry", async () => {
    const host = await serve(registryWith("/up", (request) => void request.resume()));
    const open = (): Readable => Readable.from(breaking([content.subarray(0, 10)], "the disk is broken"));
    const placed = target(host).place({ ...blob, open }, null, signal);
    await expect(placed).rejects.toMatchObject({ code: "internal" });
  });

  test("stops when the caller gives up", async () => {
    const { promise: begun, resolve: begin } = Promise.withResolvers<void>();
    const host = await serve(registryWith("/up", () => begin()));
    const stop = new AbortController();
    const placed = target(host).place(blob, null, stop.signal);
    await begun;
    stop.abort(new Error("enough"));
    await expect(placed).rejects.toThrow("enough");
  });
});

describe("tokens", () => {
  test("are asked for with the right to push, and to read what is mounted; an expired one is renewed", async () => {
    const scopes: string[][] = [];
    let expired = true;
    const host = await serve(async (request, response) => {
      const url = new URL(request.url ?? "", "http://x");
      if (url.pathname === "/token") {
        scopes.push(url.searchParams.getAll("scope"));
        response.end(JSON.stringify({ token: `t${String(scopes.length)}` }));
        return;
      }
      await buffer(request);
      const put = request.method === "PUT";
      if (request.headers.authorization === undefined || (put && expired)) {
        if (put) expired = false;
        response.writeHead(401, { "www-authenticate": `Bearer realm="http://${host}/token"` }).end();
      } else if (request.method === "HEAD") response.writeHead(404).end();
      else if (request.method === "POST") {
        // This registry does not mount.
        response.writeHead(url.searchParams.has("mount") ? 405 : 202, { location: "/up" }).end();
      } else response.writeHead(201).end();
    });
    expect(await target(host, { sources: ["team/base"] }).place(blob, "team/base", signal)).toBe("uploaded");
    const asked = ["repository:team/app:pull,push", "repository:team/base:pull"];
    expect(scopes).toEqual([asked, asked]);
  });
});

describe("a manifest", () => {
  const manifest = { ...blob, digest: digestOf(content) };

  test("is put under its tag with its media type; another digest of it is an error", async () => {
    const seen: (string | undefined)[] = [];
    let digest = manifest.digest;
    const host = await serve(async (request, response) => {
      await buffer(request);
      seen.push(request.method, request.url, request.headers["content-type"]);
      response.writeHead(201, { "docker-content-digest": digest }).end();
    });
    await target(host).putManifest("1", manifest, mediaTypes.ociManifest, signal);
    expect(seen).toEqual(["PUT", "/v2/team/app/manifests/1", mediaTypes.ociManifest]);
    digest = `sha256:${"0".repeat(64)}`;
    await expect(target(host).putManifest("1", manifest, mediaTypes.ociManifest, signal)).rejects.toMatchObject({
      code: "registry_error",
    });
  });

  test("that the registry does not take: its code is told", async () => {
    const host = await serve(async (request, response) => {
      await buffer(request);
      response.writeHead(400).end('{"errors":[{"code":"MANIFEST_INVALID","message":"<b>anything</b>"}]}');
    });
    await expect(target(host).putManifest("1", manifest, mediaTypes.ociManifest, signal)).rejects.toMatchObject({
      code: "registry_error",
      message: `The registry ${host} answered 400 (MANIFEST_INVALID).`,
    });
  });
});
