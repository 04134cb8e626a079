import { once } from "node:events";
import type { AddressInfo, Server } from "node:net";
import { createAdaptorServer } from "@hono/node-server";
import { Hono } from "hono";
import { pino } from "pino";
import { expect, test } from "vitest";
import { type AgentApp, addFiles } from "../../src/agent/files.ts";
import { BerthError } from "../../src/core/errors.ts";
import type { InboxContainer } from "../../src/db/inbox.ts";

test("a container that has just ended is said, not a tar that breaks off", async () => {
  const app: AgentApp = new Hono();
  app.onError((error, c) => c.json({ code: (error as BerthError).code }, 409));
  const openRoot = () => {
    throw new BerthError("invalid_state", "The container is not running.");
  };
  addFiles(app, { sandboxes: { openRoot }, log: pino({ level: "silent" }) }, (id) =>
    Promise.resolve({ id } as InboxContainer),
  );
  const server = createAdaptorServer({ fetch: app.fetch }) as unknown as Server;
  server.listen(0, "127.0.0.1");
  try {
    await once(server, "listening");
    const { port } = server.address() as AddressInfo;
    const response = await fetch(`http://127.0.0.1:${port}/containers/ctr_1/files?path=/etc`);
    expect([response.status, await response.json()]).toEqual([409, { code: "invalid_state" }]);
  } finally {
    server.close();
  }
});
