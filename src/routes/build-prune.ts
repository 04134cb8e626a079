import { z } from "@hono/zod-openapi";
import { BerthError } from "../core/errors.ts";
import { pruneSteps } from "../db/build-prune.ts";
import { listHosts } from "../db/hosts.ts";
import { readAll } from "./agents.ts";
import type { App, Request, Services } from "./context.ts";
import { idempotencyHeader, isAnswered, once } from "./idempotency.ts";
import { json, operation } from "./operation.ts";

const bytes = z.int().min(0);
const Pruned = z
  .object({
    bytes: bytes.openapi({ description: "Both together." }),
    steps: z.object({
      count: z.int(),
      bytes: bytes.openapi({
        description: "Of layers that no image of the project has; the store gives them back within hours.",
      }),
    }),
    caches: z.object({ bytes: bytes.openapi({ description: "On the hosts; given back at once." }) }),
    missingHosts: z.array(z.string()).openapi({
      description: "Hosts that did not answer: the caches there go when they were not used for a week.",
    }),
  })
  .openapi("BuildPrune");

const prune = operation({
  method: "post",
  path: "/v1/builds/prune",
  operationId: "pruneBuilds",
  tag: "Builds",
  summary: "Empty the project's build cache",
  description:
    "Finished steps are forgotten, and the caches of `RUN --mount=type=cache` are removed, but for those that a step uses just " +
    "now. Images and builds stay. The next build of anything runs all its steps.",
  request: { headers: idempotencyHeader },
  responses: { 200: json(Pruned, "What is gone") },
  errors: ["idempotency_key_reused"],
});

/** Has every host remove the project's caches. */
async function pruneCaches(services: Services, c: Request): Promise<{ bytes: number; missing: string[] }> {
  const path = `/projects/${c.var.scope.projectId}/caches/prune`;
  const { signal } = c.req.raw;
  const missing: string[] = [];
  const removed = await Promise.all(
    (await listHosts(services.sql)).map(async ({ id, name }) => {
      try {
        const response = await services.agents.ask(id, { method: "POST", path, signal });
        return z.object({ bytes }).parse(JSON.parse(await readAll(response, 1_024))).bytes;
      } catch (error) {
        if (!(error instanceof BerthError)) throw error;
        missing.push(name);
        return 0;
      }
    }),
  );
  return { bytes: removed.reduce((sum, some) => sum + some, 0), missing };
}

export function addBuildPrune(app: App, services: Services): void {
  app.openapi(prune, async (c) => {
    // Before the transaction: it would keep one of the few connections for as long as the slowest host takes.
    const caches = (await isAnswered(services, c)) ? { bytes: 0, missing: [] } : await pruneCaches(services, c);
    const answer = await once<z.infer<typeof Pruned>>(services, c, async (tx) => {
      const steps = await pruneSteps(tx, c.var.scope.projectId);
      return {
        bytes: steps.bytes + caches.bytes,
        steps: { count: steps.steps, bytes: steps.bytes },
        caches: { bytes: caches.bytes },
        missingHosts: caches.missing,
      };
    });
    return c.json(answer, 200);
  });
}
