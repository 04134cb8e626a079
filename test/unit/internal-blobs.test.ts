import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { openHostStore } from "../../src/image/blob-stores.ts";
import type { BlobStore } from "../../src/image/blobs.ts";
import { digestOf } from "../../src/image/digest.ts";
import { FileBlobs } from "../../src/image/file-blobs.ts";
import { Retry } from "../../src/image/retry.ts";
import { type CutProxy, startCutProxy } from "../support/cut-proxy.ts";
import { chunked, collect, gather } from "../support/image.ts";
import { type InternalListener, startInternalListener } from "../support/internal-listener.ts";
import { makeTls } from "../support/tls.ts";

const content = randomBytes(3_000_000);
const digest = digestOf(content);
const retry = new Retry({ attempts: 4, firstDelayMs: 20 });
const hosts = { "key-a": "hst_a", "key-b": "hst_b" };

let directory: string;
let store: FileBlobs;
let api: InternalListener;
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "berth-internal-"));
  store = new FileBlobs(join(directory, "store"));
  api = await startInternalListener(store, hosts);
});
afterEach(async () => {
  await api.close();
  await rm(directory, { recursive: true, force: true });
});

const leftovers = () => readdir(join(directory, "store/tmp"));

describe("the endpoint", () => {
  const ask = (
    path: string,
    init: Omit<RequestInit, "headers"> & { headers?: Record<string, string> } = {},
    key: keyof typeof hosts = "key-a",
  ) =>
    fetch(`${api.url}/internal/blobs/${path}`, {
      ...init,
      headers: { authorization: `Bearer ${key}`, ...init.headers },
    });
  const put = (bytes: Uint8Array, headers: Record<string, string> = {}, key: keyof typeof hosts = "key-a") =>
    ask(digest, { method: "PUT", body: Buffer.from(bytes), headers }, key);
  const offer = async (key: keyof typeof hosts = "key-a", sizeBytes = content.length) => {
    const response = await ask(digest, { method: "POST", body: JSON.stringify({ sizeBytes }) }, key);
    const answer: unknown = await response.json();
    return answer;
  };
  const code = async (response: Response) => ({
    status: response.status,
    code: ((await response.json()) as { code: string }).code,
  });

  test("answers nobody but hosts", async () => {
    await store.put(Readable.from([content]), { maxBytes: 1e9 });
    const target = `${api.url}/internal/blobs/${digest}`;
    for (const authorization of ["", "Bearer", "Bearer key-c", "Basic a2V5LWE="]) {
      for (const method of ["GET", "HEAD", "POST", "PUT"]) {
        const response = await fetch(target, { method, headers: authorization === "" ? {} : { authorization } });
        await response.arrayBuffer();
        expect(response.status).toBe(401);
      }
    }
  });

  test("gives a blob, or a range of it", async () => {
    await store.put(Readable.from([content]), { maxBytes: 1e9 });
    const head = await ask(digest, { method: "HEAD" });
    expect([head.status, head.headers.get("content-length")]).toEqual([200, String(content.length)]);
    const whole = await ask(digest);
    expect(Buffer.from(await whole.arrayBuffer()).equals(content)).toBe(true);
    for (const [range, from, to] of [
      ["bytes=0-0", 0, 1],
      ["bytes=2999990-", 2_999_990, 3_000_000],
      ["bytes=5-999999999", 5, 3_000_000],
    ] as const) {
      const response = await ask(digest, { headers: { range } });
      expect(response.status).toBe(206);
      expect(response.headers.get("content-range")).toBe(`bytes ${from}-${to - 1}/3000000`);
      expect(Buffer.from(await response.arrayBuffer()).equals(content.subarray(from, to))).toBe(true);
    }
    const beyond = await ask(digest, { headers: { range: "bytes=3000000-" } });
    expect(beyond.headers.get("content-range")).toBe("bytes */3000000");
    expect(await code(beyond)).toEqual({ status: 416, code: "range_not_satisfiable" });
    for (const range of ["bytes=9-5", "lines=1-2", "bytes=0-1,4-5", "bytes=-"]) {
      const response = await ask(digest, { headers: { range } });
      await response.arrayBuffer();
      expect(response.status).toBe(200);
    }
  });

  test("knows digests only", async () => {
    expect(await code(await ask(digest))).toEqual({ status: 404, code: "not_found" });
    expect((await ask(digest, { method: "HEAD" })).status).toBe(404);
    for (const name of ["sha256:abc", "..%2f..%2fsecret-key", `sha512:${"a".repeat(128)}`]) {
      expect(await code(await ask(name))).toEqual({ status: 400, code: "invalid_reference" });
    }
  });

  test("takes a blob in pieces, each sender's apart", async () => {
    expect(await offer()).toEqual({ state: "upload", offset: 0 });
    await breakOff(content.subarray(0, 2_000_000), 1_000_000);
    await vi.waitFor(async () => expect(await offer()).toEqual({ state: "upload", offset: 1_000_000 }));
    expect(await offer("key-b")).toEqual({ state: "upload", offset: 0 });
    const rest = { "content-range": "bytes 1000000-2999999/3000000" };
    // Another's beginning is nothing to go on with.
    expect(await code(await put(content.subarray(1_000_000), rest, "key-b"))).toEqual({
      status: 409,
      code: "invalid_state",
    });
    expect((await put(content.subarray(1_000_000), rest)).status).toBe(201);
    expect(await offer("key-b")).toEqual({ state: "present" });
    expect(await leftovers()).toEqual([]);
    expect((await collect(await store.open(digest))).equals(content)).toBe(true);
  });

  test("keeps nothing of what is wrong", async () => {
    const wrong = Buffer.from(content).fill(0, 100, 200);
    expect(await code(await put(wrong))).toEqual({ status: 400, code: "digest_mismatch" });
    await breakOff(wrong.subarray(0, 1_500_000), 1_000_000);
    await vi.waitFor(async () => expect(await offer()).toEqual({ state: "upload", offset: 1_000_000 }));
    const rest = { "content-range": "bytes 1000000-2999999/3000000" };
    expect(await code(await put(content.subarray(1_000_000), rest))).toEqual({ status: 400, code: "digest_mismatch" });
    // A beginning that was wrong is not gone on with.
    expect(await offer()).toEqual({ state: "upload", offset: 0 });
    for (const range of [
      "bytes 0-5/3000000",
      "bytes 2000000-1/3000000",
      "bytes 0-99999999999999/100000000000000",
      "x",
    ]) {
      expect(await code(await put(content.subarray(0, 6), { "content-range": range }))).toEqual({
        status: 400,
        code: "invalid_request",
      });
    }
    for (const body of ["", "{", "{}", '{"sizeBytes":-1}', '{"sizeBytes":1e15}', '{"sizeBytes":1,"more":1}']) {
      expect(await code(await ask(digest, { method: "POST", body }))).toEqual({ status: 400, code: "invalid_request" });
    }
    expect(await code(await ask(digest, { method: "POST", body: " ".repeat(5000) }))).toMatchObject({ status: 413 });
    const tooMuch = { "content-range": "bytes 0-9/10" };
    expect(await code(await put(content.subarray(0, 20), tooMuch))).toEqual({ status: 413, code: "body_too_large" });
    expect(await gather(store.list())).toEqual([]);
    expect(await leftovers()).toEqual([]);
  });

  test("goes on after a sender that nobody has told of its end", async () => {
    const receive = vi.spyOn(store, "receive");
    const silent = connect(api.port, "127.0.0.1");
    silent.write(
      `PUT /internal/blobs/${digest} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer key-a\r\n` +
        `Content-Length: ${content.length}\r\n\r\n`,
    );
    await new Promise((resolve) => silent.write(content.subarray(0, 1_000_000), resolve));
    await vi.waitFor(() => expect(receive).toHaveBeenCalled());
    expect(await offer()).toEqual({ state: "upload", offset: 1_000_000 });
    silent.destroy();
  });

  /** Says that it sends the whole blob, and breaks off when so many bytes of these were sent. */
  async function breakOff(bytes: Uint8Array, after: number): Promise<void> {
    const socket = connect(api.port, "127.0.0.1");
    socket.write(
      `PUT /internal/blobs/${digest} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer key-a\r\n` +
        `Content-Length: ${content.length}\r\n\r\n`,
    );
    socket.end(bytes.subarray(0, after));
    socket.resume();
    await once(socket, "close");
  }
});

describe("a host's store", () => {
  let proxy: CutProxy;
  let host: BlobStore;
  beforeEach(async () => {
    proxy = await startCutProxy(api.port);
    const url = `http://127.0.0.1:${String(proxy.port)}`;
    host = openHostStore({ url, credential: "key-a", ca: null }, join(directory, "host"), retry);
  });
  afterEach(async () => {
    await proxy.close();
  });

  test("puts what it stores into the cluster's, once, and reads from there what it lacks", async () => {
    expect(await host.size(digest)).toBeNull();
    await expect(host.open(digest)).rejects.toMatchObject({ code: "not_found" });
    const empty = await host.put(Readable.from([]), { maxBytes: 0 });
    expect(await store.size(empty.digest)).toBe(0);
    expect(await host.put(chunked(content, 70_000), { maxBytes: 1e9 })).toEqual({ digest, sizeBytes: content.length });
    expect(await store.size(digest)).toBe(content.length);
    const receive = vi.spyOn(store, "receive");
    await host.put(chunked(content, 70_000), { digest, maxBytes: 1e9 });
    expect(receive).not.toHaveBeenCalled();

    const read = vi.spyOn(store, "open");
    expect((await collect(await host.open(digest))).equals(content)).toBe(true);
    expect(read).not.toHaveBeenCalled();
    await host.tidy(-1);
    expect((await collect(await host.open(digest))).equals(content)).toBe(true);
    expect(await collect(await host.open(digest, { start: 7, end: 9 }))).toEqual(content.subarray(7, 10));
    expect(read).toHaveBeenCalledTimes(2);
  });

  test("sends a blob once for all who store it at the same time, and keeps it meanwhile", async () => {
    const { promise: held, resolve: release } = Promise.withResolvers<void>();
    const receive = vi.spyOn(store, "receive").mockImplementationOnce(async (source, blob) => {
      await held;
      return FileBlobs.prototype.receive.call(store, source, blob);
    });
    const puts = [1, 2, 3].map(() => host.put(chunked(content, 70_000), { maxBytes: 1e9 }));
    await vi.waitFor(() => expect(receive).toHaveBeenCalledTimes(1));
    await vi.waitFor(async () => expect(await readdir(join(directory, "host/tmp"))).toEqual([]));
    await host.tidy(-1);
    expect(await readdir(join(directory, "host/sha256"))).toEqual([digest.slice(7)]);
    release();
    await Promise.all(puts);
    expect(receive).toHaveBeenCalledTimes(1);
    await host.tidy(-1);
    expect(await readdir(join(directory, "host/sha256"))).toEqual([]);
  });

  test("goes on where sending broke off", async () => {
    // The connection of the offer is kept for what is sent, so that both are cut off together.
    proxy.cutNext({ sent: 1_000_000 }, { sent: 1_200_000 });
    const receive = vi.spyOn(store, "receive");
    await host.put(chunked(content, 70_000), { maxBytes: 1e9 });
    expect((await collect(await store.open(digest))).equals(content)).toBe(true);
    const starts = receive.mock.calls.map(([, { start }]) => start);
    expect(starts).toHaveLength(3);
    expect(starts[0]).toBe(0);
    expect(starts[1]).toBeGreaterThan(900_000);
    expect(starts[2]).toBeGreaterThan(2_000_000);
    expect(await leftovers()).toEqual([]);
  });

  test("goes on where reading broke off", async () => {
    await store.put(Readable.from([content]), { maxBytes: 1e9 });
    proxy.cutNext({ received: 1_000_000 }, { received: 0 }, { received: 1_200_000 });
    const read = vi.spyOn(store, "open");
    expect((await collect(await host.open(digest))).equals(content)).toBe(true);
    const starts = read.mock.calls.map(([, range]) => range?.start ?? 0);
    expect(starts[0]).toBe(0);
    expect(starts.at(-1)).toBeGreaterThan(2_000_000);
  });

  test("gives up after some attempts without progress, and says so", async () => {
    await store.put(Readable.from([content]), { maxBytes: 1e9 });
    proxy.cutNext(...Array.from({ length: 10 }, () => ({ received: 0 })));
    await expect(host.size(digest)).rejects.toMatchObject({ code: "blob_store_error", retryable: true });
  });

  test("notices bytes that are not the blob's", async () => {
    await store.put(Readable.from([content]), { maxBytes: 1e9 });
    await writeFile(join(directory, "store/sha256", digest.slice(7)), Buffer.from(content).fill(0, 5, 9));
    await expect(host.open(digest).then(collect)).rejects.toMatchObject({ code: "digest_mismatch" });
  });

  test("ends its request when the reader leaves", async () => {
    await store.put(Readable.from([content, content, content]), { maxBytes: 1e9 });
    const large = digestOf(Buffer.concat([content, content, content]));
    const opened = vi.spyOn(store, "open");
    const stream = await host.open(large);
    await once(stream, "readable");
    stream.destroy();
    const served = await (opened.mock.results[0]?.value as Promise<Readable>);
    await vi.waitFor(() => expect(served.destroyed).toBe(true));
  });

  test("is refused without the right key, at once", async () => {
    const url = `http://127.0.0.1:${String(proxy.port)}`;
    const stranger = openHostStore({ url, credential: "key-c", ca: null }, join(directory, "stranger"));
    await expect(stranger.size(digest)).rejects.toThrow();
    await expect(stranger.open(digest)).rejects.toMatchObject({ code: "unauthorized" });
    await expect(stranger.put(Readable.from([content]), { maxBytes: 1e9 })).rejects.toMatchObject({
      code: "unauthorized",
    });
    expect(proxy.connections()).toBeLessThan(5);
  });
});

test("over TLS the authority decides whom a host speaks to", async () => {
  const { certificate, key, authority } = makeTls(directory, "127.0.0.1");
  const [cert, secret, ca] = await Promise.all([certificate, key, authority].map((path) => readFile(path, "utf8")));
  const tls = await startInternalListener(store, hosts, { cert: cert ?? "", key: secret ?? "" });
  try {
    const host = (trusted: string | null) =>
      openHostStore({ url: tls.url, credential: "key-a", ca: trusted }, join(directory, "host"), retry);
    await host(ca ?? "").put(Readable.from([content]), { maxBytes: 1e9 });
    expect(await store.size(digest)).toBe(content.length);
    await expect(host(null).size(digest)).rejects.toMatchObject({ code: "blob_store_error" });
  } finally {
    await tls.close();
  }
});
