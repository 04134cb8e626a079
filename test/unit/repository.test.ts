import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { afterEach, describe, expect, test } from "vitest";
import { parseReference } from "../../src/core/reference.ts";
import { digestOf } from "../../src/image/digest.ts";
import { mediaTypes } from "../../src/image/manifest.ts";
import { Registry } from "../../src/image/registry.ts";
import { parseChallenges, parseToken, type RegistryAuth, tokenUrl } from "../../src/image/registry-auth.ts";
import type { FetchedManifest, Repository } from "../../src/image/repository.ts";
import { collect } from "../support/image.ts";

type Handler = (request: IncomingMessage, response: ServerResponse) => void;

const servers: Server[] = [];
const registries: Registry[] = [];
afterEach(() => {
  for (const registry of registries.splice(0)) registry.close();
  for (const server of servers.splice(0)) {
    server.closeAllConnections();
    server.close();
  }
});

/** A server of a bad registry's answers on loopback. Returns its `host:port`. */
async function serve(handler: Handler): Promise<string> {
  const server = createServer(handler).listen(0, "127.0.0.1");
  servers.push(server);
  await once(server, "listening");
  return `127.0.0.1:${String((server.address() as AddressInfo).port)}`;
}

const manifest = Buffer.from(JSON.stringify({ schemaVersion: 2 }));
const sendManifest = (response: ServerResponse): void => {
  response.writeHead(200, { "content-type": mediaTypes.ociManifest }).end(manifest);
};

function resolve(
  text: string,
  more: {
    auth?: RegistryAuth;
    insecure?: string[];
    mirrors?: [string, string][];
    signal?: AbortSignal;
    idleMs?: number;
  } = {},
): Promise<{ repository: Repository; manifest: FetchedManifest }> {
  const reference = parseReference(text);
  const registry = new Registry({
    mirrors: new Map(more.mirrors ?? []),
    insecure: new Set(more.insecure ?? [reference.registry ?? ""]),
    allow: [],
    idleMs: more.idleMs ?? 5000,
    retry: { attempts: 3, firstDelayMs: 1 },
  });
  registries.push(registry);
  return registry.resolve(
    { ...reference, registry: reference.registry ?? "" },
    more.auth ?? null,
    more.signal ?? new AbortController().signal,
  );
}

const auth = { username: "ada", password: "s:é" };

describe("answers", () => {
  test.each<[string, number, string, number]>([
    ["404", 404, "image_not_found", 1],
    ["403", 403, "registry_denied", 1],
    ["401 without a challenge", 401, "registry_denied", 1],
    ["400", 400, "registry_error", 1],
    ["500, again and again", 500, "registry_error", 3],
    ["429, again and again", 429, "registry_error", 3],
  ])("%s", async (_, status, code, expected) => {
    let requests = 0;
    const host = await serve((__, response) => {
      requests++;
      response.writeHead(status).end("{}");
    });
    // Of many images, the one that can't be had is named.
    await expect(resolve(`${host}/a:1`)).rejects.toMatchObject({
      code,
      message: expect.stringContaining(`${host}/a:1`) as string,
    });
    expect(requests).toBe(expected);
  });

  test("an overload that passes is waited for", async () => {
    let requests = 0;
    const host = await serve((_, response) => {
      requests++;
      if (requests === 1) response.writeHead(503).end();
      else if (requests === 2) response.writeHead(429, { "retry-after": "0" }).end();
      else sendManifest(response);
    });
    expect((await resolve(`${host}/a:1`)).manifest.digest).toBe(digestOf(manifest));
  });

  test("a manifest of another digest than asked for", async () => {
    const host = await serve((_, response) => {
      sendManifest(response);
    });
    const asked = `sha256:${"0".repeat(64)}`;
    await expect(resolve(`${host}/a@${asked}`)).rejects.toMatchObject({ code: "digest_mismatch" });
  });

  test("an endless manifest is cut off", async () => {
    const host = await serve((_, response) => {
      const more = (): void => {
        while (response.write(Buffer.alloc(65_536))) if (response.destroyed) return;
      };
      response.on("drain", more).on("error", () => undefined);
      more();
    });
    await expect(resolve(`${host}/a:1`)).rejects.toMatchObject({ code: "invalid_image" });
  });

  test("silence is given up after a while, and at once when the caller gives up", async () => {
    const host = await serve(() => undefined);
    await expect(resolve(`${host}/a:1`, { idleMs: 30 })).rejects.toMatchObject({ code: "registry_unreachable" });
    const aborted = new AbortController();
    const waiting = resolve(`${host}/a:1`, { signal: aborted.signal });
    aborted.abort(new Error("enough"));
    await expect(waiting).rejects.toThrow("enough");
  });

  test("a mirror that fails is passed over, and has no credentials", async () => {
    const seen: (string | undefined)[] = [];
    const mirror = await serve((request, response) => {
      seen.push(request.headers.authorization);
      response.writeHead(401, { "www-authenticate": "Basic" }).end();
    });
    const own = await serve((_, response) => {
      sendManifest(response);
    });
    const found = await resolve(`${own}/a:1`, { auth, insecure: [own], mirrors: [[own, `http://${mirror}`]] });
    expect(found.manifest.digest).toBe(digestOf(manifest));
    expect(seen).toEqual([undefined]);
  });
});

describe("blobs", () => {
  const content = randomBytes(400_000);
  const descriptor = { mediaType: "", digest: digestOf(content), size: content.length };
  const open = async (blob: Handler): Promise<AsyncGenerator<Uint8Array>> => {
    const host = await serve((request, response) => {
      if (request.url?.includes("/manifests/") === true) sendManifest(response);
      else blob(request, response);
    });
    const { repository } = await resolve(`${host}/a:1`);
    return repository.blob(descriptor, new AbortController().signal);
  };

  test("a transfer that breaks is gone on with where it broke", async () => {
    const ranges: (string | undefined)[] = [];
    const blob = await open((request, response) => {
      const { range } = request.headers;
      ranges.push(range);
      const start = Number(/^bytes=(\d+)-$/.exec(range ?? "")?.[1] ?? 0);
      const total = String(content.length);
      const headers = {
        "content-length": content.length - start,
        "content-range": `bytes ${String(start)}-${total}/${total}`,
      };
      response.writeHead(range === undefined ? 200 : 206, headers);
      const end = Math.min(start + 150_000, content.length);
      response.write(content.subarray(start, end), () => {
        if (end < content.length) response.destroy();
        else response.end();
      });
    });
    expect(await collect(blob)).toEqual(content);
    expect(ranges.length).toBeGreaterThan(2);
    expect(ranges.slice(1).every((range) => range !== undefined)).toBe(true);
  });

  test("half a body that always ends there is an error", async () => {
    const blob = await open((request, response) => {
      if (request.headers.range === undefined) response.end(content.subarray(0, 200_000));
      else response.writeHead(206, { "content-range": `bytes 200000-399999/400000` }).end();
    });
    await expect(collect(blob)).rejects.toMatchObject({ code: "registry_unreachable", retryable: true });
  });

  test("a registry that can't go on, or no longer has it, is an error", async () => {
    const blob = await open((request, response) => {
      if (request.headers.range === undefined) response.end(content.subarray(0, 200_000));
      else response.end(content);
    });
    await expect(collect(blob)).rejects.toMatchObject({ code: "registry_error" });
    const none = await open((_, response) => {
      response.writeHead(404).end();
    });
    await expect(collect(none)).rejects.toMatchObject({ code: "registry_error" });
  });
});

describe("credentials", () => {
  /** A registry that wants a bearer token of its own realm. */
  const tokenRegistry = async (realm: (host: string) => string, seen: string[]): Promise<string> => {
    const host = await serve((request, response) => {
      const { authorization } = request.headers;
      if (request.url?.startsWith("/token") === true) {
        seen.push(`${request.url} ${authorization ?? ""}`);
        response.end(JSON.stringify({ token: "t0ken" }));
      } else if (authorization === "Bearer t0ken") {
        sendManifest(response);
      } else {
        const challenge = `Bearer realm="${realm(request.headers.host ?? "")}",service="reg",scope="evil:*:*"`;
        response.writeHead(401, { "www-authenticate": challenge }).end();
      }
    });
    return host;
  };

  test("a token is got for the repository only, with the user's name and password", async () => {
    const seen: string[] = [];
    const host = await tokenRegistry((own) => `http://${own}/token`, seen);
    await resolve(`${host}/team/app:1`, { auth });
    const basic = Buffer.from("ada:s:é").toString("base64");
    expect(seen).toEqual([`/token?service=reg&scope=repository%3Ateam%2Fapp%3Apull Basic ${basic}`]);
  });

  test("a realm in plain http elsewhere, or at an internal address, gets nothing", async () => {
    const stolen: string[] = [];
    const thief = await serve((request, response) => {
      stolen.push(request.headers.authorization ?? "");
      response.end(JSON.stringify({ token: "x" }));
    });
    const plain = await tokenRegistry(() => `http://${thief}/token`, []);
    await expect(resolve(`${plain}/a:1`, { auth })).rejects.toMatchObject({ code: "registry_error" });
    const inner = await tokenRegistry(() => `https://169.254.169.254/token`, []);
    await expect(resolve(`${inner}/a:1`, { auth })).rejects.toMatchObject({ code: "address_refused" });
    expect(stolen).toEqual([]);
  });

  test("a redirect to another host carries no credentials, and to an internal one is not followed", async () => {
    const seen: (string | undefined)[] = [];
    const other = await serve((request, response) => {
      seen.push(request.headers.authorization);
      sendManifest(response);
    });
    const redirecting = (target: string): Promise<string> =>
      serve((request, response) => {
        if (request.headers.authorization === undefined) {
          response.writeHead(401, { "www-authenticate": 'Basic realm="x"' }).end();
        } else {
          response.writeHead(307, { location: target }).end();
        }
      });
    const host = await redirecting(`http://u:p@${other}/m`);
    await expect(resolve(`${host}/a:1`, { auth })).rejects.toMatchObject({ code: "address_refused" });
    expect(seen).toEqual([]);
    // With that address opened by the operator it is followed, bare.
    await resolve(`${host}/a:1`, { auth, insecure: [host, other] });
    expect(seen).toEqual([undefined]);
    const looping = await serve((request, response) => {
      response.writeHead(302, { location: request.url }).end();
    });
    await expect(resolve(`${looping}/a:1`)).rejects.toMatchObject({ code: "registry_error" });
    const odd = await redirecting("file:///etc/passwd");
    await expect(resolve(`${odd}/a:1`, { auth })).rejects.toMatchObject({ code: "registry_error" });
  });

  test("a wrong password is said to be one, and is not tried again", async () => {
    let requests = 0;
    const host = await serve((_, response) => {
      requests++;
      response.writeHead(401, { "www-authenticate": "Basic realm=x" }).end();
    });
    await expect(resolve(`${host}/a:1`, { auth })).rejects.toMatchObject({ code: "registry_denied" });
    expect(requests).toBe(2);
  });

  test("challenges are parsed as RFC 9110 says", () => {
    const parsed = parseChallenges('Negotiate, Bearer realm="https://a/b?x=\\"y\\",z", Service=s , Basic realm = "q"');
    expect(parsed.map(({ scheme, parameters }) => [scheme, Object.fromEntries(parameters)])).toEqual([
      ["negotiate", {}],
      ["bearer", { realm: 'https://a/b?x="y",z', service: "s" }],
      ["basic", { realm: "q" }],
    ]);
    expect(parseChallenges("")).toEqual([]);
    expect(parseChallenges('"\\')).toEqual([]);
  });

  test("a realm must be https, and a token must be one", () => {
    const challenge = (realm: string) => ({ scheme: "bearer", parameters: new Map([["realm", realm]]) });
    const registry = new URL("https://registry.example");
    expect(tokenUrl(challenge("https://u:p@auth.example/t?a=1"), registry, "s")).toEqual(
      new URL("https://auth.example/t?a=1&scope=s"),
    );
    for (const realm of ["", "x", "http://registry.example/t", "ftp://x/t"]) {
      expect(tokenUrl(challenge(realm), registry, "s")).toHaveProperty("refused");
    }
    expect(parseToken('{"access_token":"a.b-c"}')).toBe("a.b-c");
    for (const body of ["", "null", "{}", '{"token":1}', '{"token":"a\\r\\nX-Y: z"}'])
      expect(parseToken(body)).toBeNull();
  });
});
