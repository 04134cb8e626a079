import { z } from "@hono/zod-openapi";
import { listHosts } from "../db/hosts.ts";
import type { App, Services } from "./context.ts";
import type { RequestMetrics } from "./metrics.ts";
import { json, operation } from "./operation.ts";

const tag = "Service";

const health = operation({
  method: "get",
  path: "/healthz",
  operationId: "getHealth",
  tag,
  summary: "Whether this process answers",
  responses: { 200: json(z.object({ status: z.literal("ok") }).openapi("Health"), "It does") },
});

const readiness = operation({
  method: "get",
  path: "/readyz",
  operationId: "getReadiness",
  tag,
  summary: "Whether Berth can do its work",
  responses: {
    200: json(
      z
        .object({ status: z.literal("ready"), hosts: z.int().openapi({ description: "Hosts that take containers." }) })
        .openapi("Readiness"),
      "The database answers",
    ),
  },
});

const metrics = operation({
  method: "get",
  path: "/metrics",
  operationId: "getMetrics",
  tag,
  summary: "Measurements in the Prometheus text format",
  responses: { 200: { description: "The measurements", content: { "text/plain": { schema: z.string() } } } },
});

export function addHealth(app: App, services: Services, requests: RequestMetrics): void {
  app.openapi(health, (c) => c.json({ status: "ok" as const }, 200));

  app.openapi(readiness, async (c) => {
    const hosts = await listHosts(services.sql);
    return c.json({ status: "ready" as const, hosts: hosts.filter((host) => host.state === "ready").length }, 200);
  });

  app.openapi(metrics, (c) => {
    const text = requests.text({
      berth_open_streams: services.streams.size,
      berth_resident_bytes: process.memoryUsage.rss(),
    });
    return c.text(text, 200, { "Content-Type": "text/plain; version=0.0.4; charset=utf-8" });
  });
}
