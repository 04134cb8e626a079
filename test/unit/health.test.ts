import { once } from "node:events";
import { createServer, type Socket } from "node:net";
import { describe, expect, test } from "vitest";
import {
  afterCheck,
  type HealthSpec,
  type HealthState,
  healthDefaults,
  healthSpec,
  nextCheckMs,
} from "../../src/core/health.ts";
import { HealthChecks } from "../../src/engine/health.ts";

const spec: HealthSpec = { probe: { tcp: { port: 80 } }, ...healthDefaults, startPeriodSeconds: 10 };
const starting: HealthState = { health: "starting", failures: 0 };

describe("a container's health", () => {
  test("failures don't count while it starts, and count from the first success or the period's end on", () => {
    expect(afterCheck(starting, false, spec, 9_999)).toEqual(starting);
    expect(afterCheck(starting, true, spec, 10)).toEqual({ health: "healthy", failures: 0 });
    let state = starting;
    for (const failures of [1, 2]) {
      state = afterCheck(state, false, spec, 10_000);
      expect(state).toEqual({ health: "starting", failures });
    }
    expect(afterCheck(state, false, spec, 10_000).health).toBe("unhealthy");
    // It has been healthy: the start is over, also within the period.
    expect(afterCheck({ health: "healthy", failures: 2 }, false, spec, 5_000).health).toBe("unhealthy");
  });

  test("only failures on end count, and one success makes it healthy again", () => {
    const almost: HealthState = { health: "healthy", failures: 2 };
    expect(afterCheck(almost, true, spec, 60_000)).toEqual({ health: "healthy", failures: 0 });
    expect(afterCheck({ health: "unhealthy", failures: 7 }, true, spec, 60_000).health).toBe("healthy");
  });

  test("is looked at closely while it starts", () => {
    expect(nextCheckMs(starting, spec, 100)).toBe(1_000);
    expect(nextCheckMs(starting, spec, 10_000)).toBe(30_000);
    expect(nextCheckMs({ health: "healthy", failures: 0 }, spec, 100)).toBe(30_000);
  });

  test("is checked as the container says, else as the image says, else not at all", () => {
    const image = { Test: ["CMD-SHELL", "curl -f localhost"], Interval: 5e9, Retries: 0 };
    expect(healthSpec(undefined, image)).toEqual({
      ...healthDefaults,
      probe: { command: ["/bin/sh", "-c", "curl -f localhost"] },
      intervalSeconds: 5,
    });
    expect(healthSpec(undefined, { Test: ["CMD", "/check", "-v"] })?.probe).toEqual({ command: ["/check", "-v"] });
    expect(healthSpec(spec, image)).toBe(spec);
    expect(healthSpec(null, image)).toBeNull();
    expect(healthSpec(undefined, { Test: ["NONE"] })).toBeNull();
    expect(healthSpec(undefined, undefined)).toBeNull();
  });
});

test("a server that answers a check by changing the protocol has failed it, and is left", async () => {
  const closed = Promise.withResolvers<void>();
  const server = createServer((client: Socket) => {
    client.once("data", () =>
      client.write("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"),
    );
    client.once("close", () => closed.resolve());
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  const port = typeof address === "object" ? (address?.port ?? 0) : 0;
  const found = Promise.withResolvers<unknown>();
  const checks = new HealthChecks({
    exec: () => Promise.reject(new Error("not asked for")),
    record: (_, health, why) => {
      found.resolve([health, why]);
      return Promise.resolve();
    },
    failed: found.reject,
  });
  const probe = { http: { port, path: "/" } };
  const asked = { ...healthDefaults, probe, retries: 1, startPeriodSeconds: 0 };
  checks.watch({ id: "ctr_x", run: 1, address: "127.0.0.1", spec: asked, health: "healthy", ranMs: 1 });
  expect(await found.promise).toEqual(["unhealthy", `GET / on port ${String(port)} answered 101`]);
  await closed.promise;
  checks.close();
  server.close();
});
