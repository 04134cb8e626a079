import { type AddressInfo, connect, type Socket } from "node:net";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { closeServer, listen } from "../../src/routes/listener.ts";
import { createApi, type TestApi, type TestProject } from "../support/api.ts";

let api: TestApi;
let project: TestProject;
let server: Awaited<ReturnType<typeof listen>>;
let port: number;

beforeAll(async () => {
  api = await createApi(inject("postgresSocketDir"));
  project = await api.project("acme");
  server = await listen(
    api.app,
    { host: "127.0.0.1", port: 0 },
    { patience: { headersMs: 300, requestMs: 2_000, keepAliveMs: 300 } },
  );
  port = (server.address() as AddressInfo).port;
});
afterAll(async () => {
  api.services.streams.closeAll();
  await closeServer(server, 100);
  await api.close();
});

/** All that the server sends until it closes the connection. */
function received(socket: Socket): Promise<string> {
  let text = "";
  socket.on("data", (chunk: Buffer) => (text += chunk.toString()));
  return new Promise((resolve) => socket.once("close", () => resolve(text)));
}

test("a client that dribbles its headers is cut off", async () => {
  const socket = connect(port, "127.0.0.1");
  socket.write("GET /healthz HTTP/1.1\r\nHost: x\r\n");
  const timer = setInterval(() => socket.write("X-A: b\r\n"), 50);
  expect(await received(socket)).toContain("408");
  clearInterval(timer);
});

test("a body that is too large is answered 413 before all of it was sent", async () => {
  const socket = connect(port, "127.0.0.1");
  const answer = received(socket);
  socket.on("error", () => undefined);
  socket.write(
    `POST /v1/containers HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${project.tokens.deployer}\r\n` +
      "Content-Type: application/json\r\nContent-Length: 1000000000\r\n\r\n{",
  );
  expect(await answer).toMatch(/^HTTP\/1.1 413/);
});

test("a stream begins at once and ends when the server closes", async () => {
  const response = await fetch(`http://127.0.0.1:${String(port)}/v1/events`, {
    headers: { authorization: `Bearer ${project.tokens.viewer}`, accept: "text/event-stream" },
  });
  const reader = response.body?.pipeThrough(new TextDecoderStream()).getReader();
  expect((await reader?.read())?.value).toBe(":\n\n");
  api.services.streams.closeAll();
  expect((await reader?.read())?.done).toBe(true);
});

test("a client that goes away ends what is held for it", async () => {
  const gone = new AbortController();
  const asked = fetch(`http://127.0.0.1:${String(port)}/v1/events`, {
    headers: { authorization: `Bearer ${project.tokens.viewer}`, accept: "text/event-stream" },
    signal: gone.signal,
  });
  const reader = (await asked).body?.getReader();
  await reader?.read();
  expect(api.services.streams.size).toBe(1);
  gone.abort();
  await expect.poll(() => api.services.streams.size, { timeout: 5_000 }).toBe(0);
});
