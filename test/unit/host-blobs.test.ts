import { once } from "node:events";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { Readable } from "node:stream";
import { expect, test } from "vitest";
import { HostBlobs } from "../../src/image/host-blobs.ts";
import { HttpClient } from "../../src/image/http.ts";
import { OutboundPolicy } from "../../src/image/outbound.ts";
import { Retry } from "../../src/image/retry.ts";

test("an offer whose answer breaks off is made again", async () => {
  let offers = 0;
  const server = createServer((request, response) => {
    request.resume();
    const answer = JSON.stringify({ state: "present" });
    response.writeHead(200, { "content-length": String(answer.length) });
    if (++offers === 1) response.write(answer.slice(0, 5), () => response.destroy());
    else response.end(answer);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const http = new HttpClient(new OutboundPolicy(["127.0.0.1/32"]), 5_000);
  try {
    const api = new URL(`http://127.0.0.1:${String((server.address() as AddressInfo).port)}`);
    const retry = new Retry({ attempts: 2, firstDelayMs: 1 });
    const blobs = new HostBlobs({ api, credential: "c", http, elsewhere: http, retry });
    const open = () => Promise.resolve(Readable.from([Buffer.from("x")]));
    await blobs.send({ digest: `sha256:${"0".repeat(64)}`, sizeBytes: 1, open });
    expect(offers).toBe(2);
  } finally {
    http.close();
    server.closeAllConnections();
    server.close();
  }
});
