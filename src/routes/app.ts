import { OpenAPIHono } from "@hono/zod-openapi";
import { except } from "hono/combine";
import { cors } from "hono/cors";
import { methodNotAllowed } from "hono/method-not-allowed";
import { routePath } from "hono/route";
import { BerthError } from "../core/errors.ts";
import { newId } from "../core/ids.ts";
import { authenticate } from "./auth.ts";
import { addBuildLogs } from "./build-logs.ts";
import { addBuildPrune } from "./build-prune.ts";
import { addBuilds } from "./builds.ts";
import { addContainerActions } from "./container-actions.ts";
import { addContainerFiles } from "./container-files.ts";
import { addContainerStreams } from "./container-streams.ts";
import { addContainerUpdate } from "./container-update.ts";
import { addContainerUsage } from "./container-usage.ts";
import { addContainers } from "./containers.ts";
import type { App, Env, Services } from "./context.ts";
import { addDeliveries } from "./deliveries.ts";
import { addDeployments } from "./deployments.ts";
import { addDocs } from "./docs.ts";
import { addEvents } from "./events.ts";
import { addGit } from "./git/git.ts";
import { addHealth } from "./health.ts";
import { addHosts } from "./hosts.ts";
import { addImageArchives } from "./image-archives.ts";
import { addImageTransfers } from "./image-transfers.ts";
import { addImages } from "./images.ts";
import { addJobs } from "./jobs.ts";
import { addJoinTokens } from "./join-tokens.ts";
import { RequestMetrics } from "./metrics.ts";
import { notFound } from "./parameters.ts";
import { addPorts } from "./ports.ts";
import { asBerthError, inputProblems, invalidRequest, problemResponse } from "./problem.ts";
import { addProjects } from "./projects.ts";
import { addRegistry } from "./registry.ts";
import { addSources } from "./sources.ts";
import { addWebhooks } from "./webhooks.ts";

/** What a path must not tell the log: a token that somebody put into it. */
const redact = (path: string) => path.replaceAll(/berth_[0-9A-Za-z]+/g, "berth_[redacted]");

/** The whole API as one function from request to response; what it needs is given, so that tests can give their own. */
export function createApp(services: Services): App {
  const app = new OpenAPIHono<Env>({
    defaultHook: (result) => {
      if (result.success) return;
      // What can't be an id does not exist, as an id that nothing has.
      if (result.target === "param") throw notFound("resource");
      const prefix = { query: "query", header: "header" }[result.target as string] ?? "";
      throw invalidRequest(inputProblems(result.error, prefix));
    },
  });
  const requests = new RequestMetrics();

  app.openAPIRegistry.registerComponent("securitySchemes", "token", {
    type: "http",
    scheme: "bearer",
    description: "A project's token, or the operator's.",
  });

  app.use(async (c, next) => {
    const begin = performance.now();
    const requestId = newId("request");
    c.set("requestId", requestId);
    await next();
    c.res.headers.set("X-Request-Id", requestId);
    const ms = performance.now() - begin;
    requests.observe(c.req.method, routePath(c, -1), c.res.status, ms / 1000);
    services.log.debug(
      { requestId, method: c.req.method, path: redact(c.req.path), status: c.res.status, ms },
      "request",
    );
  });
  app.use(
    cors({
      origin: [...services.corsOrigins],
      allowHeaders: [
        "Authorization",
        "Content-Type",
        "Berth-Project",
        "Berth-Build-Secrets",
        "Berth-Registry-Auth",
        "Idempotency-Key",
        "Prefer",
        "Last-Event-ID",
      ],
      exposeHeaders: ["Location", "X-Request-Id", "Preference-Applied", "Idempotency-Replayed", "Retry-After"],
      maxAge: 600,
    }),
  );
  // A webhook is told by its signature.
  app.use("/v1/*", except("/v1/webhooks/*", authenticate(services)));
  app.use(
    methodNotAllowed({
      app,
      onMethodNotAllowed: (c, methods) => {
        c.header("Allow", methods.join(", "));
        const error = new BerthError(
          "method_not_allowed",
          `${c.req.method} is not allowed here; what is: ${methods.join(", ")}.`,
        );
        return problemResponse(c, error, (c.var as Env["Variables"]).requestId);
      },
    }),
  );
  app.onError((thrown, c) => {
    const error = asBerthError(thrown);
    const { requestId } = c.var;
    // What Berth does not do is no fault of its own.
    if (error.status >= 500 && error.code !== "not_supported") {
      services.log.error(
        { err: error.cause ?? error, code: error.code, requestId, path: redact(c.req.path) },
        "request failed",
      );
    }
    return problemResponse(c, error, requestId);
  });
  app.notFound((c) =>
    problemResponse(
      c,
      new BerthError("not_found", "There is nothing at this path; /docs lists the operations."),
      c.var.requestId,
    ),
  );

  addBuilds(app, services);
  addBuildLogs(app, services);
  addBuildPrune(app, services);
  addSources(app, services);
  addDeliveries(app, services);
  addWebhooks(app, services);
  // Before the others: `archive` is no image's name there.
  addImageArchives(app, services);
  addImages(app, services);
  addImageTransfers(app, services);
  addContainers(app, services);
  addContainerActions(app, services);
  addContainerStreams(app, services);
  addContainerFiles(app, services);
  addContainerUpdate(app, services);
  addContainerUsage(app, services);
  addPorts(app, services);
  addDeployments(app, services);
  addJobs(app, services);
  addEvents(app, services);
  addProjects(app, services);
  addHosts(app, services);
  addJoinTokens(app, services);
  addGit(app, services);
  addRegistry(app, services);
  addHealth(app, services, requests);
  addDocs(app);
  return app;
}
