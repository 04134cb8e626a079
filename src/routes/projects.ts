import { z } from "@hono/zod-openapi";
import { customAlphabet } from "nanoid";
import { BerthError } from "../core/errors.ts";
import { newId } from "../core/ids.ts";
import { appendEvent } from "../db/events.ts";
import { findProject, insertProject, listProjects, readQuota, readUsage, updateQuota } from "../db/projects.ts";
import type { Scope } from "../db/scope.ts";
import { transact, violation, wake } from "../db/scope.ts";
import { insertToken, listTokens, revokeToken } from "../db/tokens.ts";
import { topics } from "../db/wakeups.ts";
import { Name } from "./container-schema.ts";
import type { App, Request, Services } from "./context.ts";
import { idempotencyHeader, once } from "./idempotency.ts";
import { body, json, operation } from "./operation.ts";
import { idParam, listOf, listSchema, notFound, pageOf, pageQuery } from "./parameters.ts";

const tag = "Projects";
const params = idParam("project", "id or name");

const Project = z
  .object({
    id: z.string().openapi({ example: "prj_0q3xr5kkp8wmz2v9d1hc" }),
    name: z.string().openapi({ example: "default" }),
    createdAt: z.iso.datetime(),
  })
  .openapi("Project");

const Amounts = z.object({
  containers: z.int(),
  cpus: z.number().openapi({ description: "Cores of all containers together." }),
  memory: z.int().openapi({ description: "Bytes of all containers together." }),
  disk: z.int().openapi({ description: "Bytes of all containers' writable layers together." }),
  ports: z.int(),
  runningBuilds: z.int(),
});
const Quota = Amounts.openapi("Quota");
const Usage = Amounts.openapi("Usage");

const Token = z
  .object({
    id: z.string().openapi({ example: "tok_0q3xr5kkp8wmz2v9d1hc" }),
    name: z.string().openapi({ example: "ci" }),
    role: z.enum(["admin", "deployer", "viewer"]),
    createdAt: z.iso.datetime(),
    revokedAt: z.iso.datetime().nullable(),
  })
  .openapi("Token");

const create = operation({
  method: "post",
  path: "/v1/projects",
  operationId: "createProject",
  tag,
  summary: "Create a project",
  request: { headers: idempotencyHeader, body: body(z.strictObject({ name: Name }).openapi("ProjectCreate")) },
  responses: { 201: json(Project, "The project") },
  errors: ["name_taken", "idempotency_key_reused"],
});

const list = operation({
  method: "get",
  path: "/v1/projects",
  operationId: "listProjects",
  tag,
  summary: "List the projects that the token may see",
  request: { query: z.strictObject(pageQuery) },
  responses: { 200: json(listSchema("ProjectList", Project), "A page of projects") },
});

const get = operation({
  method: "get",
  path: "/v1/projects/{id}",
  operationId: "getProject",
  tag,
  summary: "Get a project",
  request: { params },
  responses: { 200: json(Project, "The project") },
  errors: ["not_found"],
});

const getQuota = operation({
  method: "get",
  path: "/v1/projects/{id}/quota",
  operationId: "getQuota",
  tag,
  summary: "What a project may have",
  request: { params },
  responses: { 200: json(Quota, "The limits") },
  errors: ["not_found"],
});

const setQuota = operation({
  method: "patch",
  path: "/v1/projects/{id}/quota",
  operationId: "updateQuota",
  tag,
  summary: "Change what a project may have",
  description: "What the project has already stays, also above a new limit.",
  request: {
    params,
    body: body(
      z
        .strictObject({
          containers: z.int().min(0).max(1_000_000).optional(),
          cpus: z.number().min(0).max(1_000_000).optional(),
          memory: z
            .int()
            .min(0)
            .max(2 ** 52)
            .optional(),
          disk: z
            .int()
            .min(0)
            .max(2 ** 52)
            .optional(),
          ports: z.int().min(0).max(1_000_000).optional(),
          runningBuilds: z.int().min(0).max(10_000).optional(),
        })
        .openapi("QuotaUpdate", { example: { containers: 20, memory: 8_589_934_592 } }),
    ),
  },
  responses: { 200: json(Quota, "The limits as they are now") },
  errors: ["not_found"],
});

const getUsage = operation({
  method: "get",
  path: "/v1/projects/{id}/usage",
  operationId: "getUsage",
  tag,
  summary: "What a project has",
  request: { params },
  responses: { 200: json(Usage, "What its containers, ports and builds take") },
  errors: ["not_found"],
});

const createToken = operation({
  method: "post",
  path: "/v1/projects/{id}/tokens",
  operationId: "createToken",
  tag,
  summary: "Create a token of a project",
  description: "The token itself is only in this answer; what is kept of it can't be used.",
  request: {
    params,
    headers: idempotencyHeader,
    body: body(
      z
        .strictObject({ role: z.enum(["admin", "deployer", "viewer"]), name: z.string().max(100).default("") })
        .openapi("TokenCreate", { example: { role: "deployer", name: "ci" } }),
    ),
  },
  responses: {
    201: json(Token.extend({ token: z.string().openapi({ example: "berth_…" }) }).openapi("NewToken"), "The token"),
  },
  errors: ["not_found", "idempotency_key_reused"],
});

const getTokens = operation({
  method: "get",
  path: "/v1/projects/{id}/tokens",
  operationId: "listTokens",
  tag,
  summary: "List a project's tokens",
  request: { params },
  responses: { 200: json(listSchema("TokenList", Token), "Its tokens that were not revoked") },
  errors: ["not_found"],
});

const revoke = operation({
  method: "delete",
  path: "/v1/projects/{id}/tokens/{tokenId}",
  operationId: "revokeToken",
  tag,
  summary: "Revoke a token, and end its open streams",
  request: {
    params: params.extend({
      tokenId: z
        .string()
        .max(64)
        .openapi({ param: { name: "tokenId", in: "path" }, example: "tok_0q3xr5kkp8wmz2v9d1hc" }),
    }),
  },
  responses: { 204: { description: "It is revoked" } },
  errors: ["not_found"],
});

/** Names that mean something else in an image reference or a URL. */
const reservedNames = new Set(["localhost", "library"]);

const randomToken = customAlphabet("0123456789abcdefghijklmnopqrstuvwxyz", 40);

export function addProjects(app: App, services: Services): void {
  const { sql } = services;

  /** The project in the path, and the scope to act in it. @throws BerthError `not_found` also for another's project. */
  const inProject = async (c: Request, idOrName: string) => {
    const project = await findProject(sql, c.var.scope, idOrName);
    if (project === null) throw notFound("project");
    const scope: Scope = { ...c.var.scope, projectId: project.id };
    return { project, scope };
  };

  app.openapi(create, async (c) => {
    const { name } = c.req.valid("json");
    if (reservedNames.has(name)) throw new BerthError("name_taken", `${name} can't be a project's name.`);
    const project = await once(services, c, async (tx) => insertProject(tx, { id: newId("project"), name })).catch(
      (error: unknown) => {
        if (violation(error) !== "projects_name_key") throw error;
        throw new BerthError("name_taken", `There is a project named ${name}.`);
      },
    );
    c.header("Location", `/v1/projects/${project.id}`);
    return c.json(project, 201);
  });

  app.openapi(list, async (c) => {
    const page = pageOf(c.req.valid("query"));
    const rows = await listProjects(sql, c.var.scope, page);
    return c.json(
      listOf(
        page,
        rows,
        (row) => row.id,
        ({ id, name, createdAt }) => ({ id, name, createdAt }),
      ),
      200,
    );
  });

  app.openapi(get, async (c) => c.json((await inProject(c, c.req.valid("param").id)).project, 200));

  app.openapi(getQuota, async (c) => {
    const { scope } = await inProject(c, c.req.valid("param").id);
    const quota = await readQuota(sql, scope);
    if (quota === null) throw notFound("project");
    return c.json(quota, 200);
  });

  app.openapi(setQuota, async (c) => {
    const { scope } = await inProject(c, c.req.valid("param").id);
    const change = c.req.valid("json");
    const quota = await transact(sql, scope, async (tx) => {
      const changed = await updateQuota(tx, scope.projectId, change);
      await appendEvent(tx, {
        projectId: scope.projectId,
        type: "quota.updated",
        subjectId: scope.projectId,
        data: change,
      });
      return changed;
    });
    if (quota === null) throw notFound("project");
    return c.json(quota, 200);
  });

  app.openapi(getUsage, async (c) => {
    const { scope } = await inProject(c, c.req.valid("param").id);
    return c.json(await readUsage(sql, scope), 200);
  });

  app.openapi(createToken, async (c) => {
    const { scope } = await inProject(c, c.req.valid("param").id);
    const { role, name } = c.req.valid("json");
    const made = await once(
      services,
      c,
      async (tx) => {
        const token = `berth_${randomToken()}`;
        const row = await insertToken(tx, { id: newId("token"), projectId: scope.projectId, role, name, text: token });
        await appendEvent(tx, {
          projectId: scope.projectId,
          type: "token.created",
          subjectId: row.id,
          data: { role, name },
        });
        return { ...row, role, token };
      },
      { secret: true, scope },
    );
    return c.json(made, 201);
  });

  app.openapi(getTokens, async (c) => {
    const { scope } = await inProject(c, c.req.valid("param").id);
    const items = (await listTokens(sql, scope)).map((row) => ({ ...row, role: row.role as "admin" }));
    return c.json({ items, nextCursor: null }, 200);
  });

  app.openapi(revoke, async (c) => {
    const { id, tokenId } = c.req.valid("param");
    const { scope } = await inProject(c, id);
    await transact(sql, scope, async (tx) => {
      const row = await revokeToken(tx, scope.projectId, tokenId);
      if (row === null) throw notFound("token");
      await appendEvent(tx, { projectId: scope.projectId, type: "token.revoked", subjectId: row.id });
      await wake(tx, topics.resource(row.id));
    });
    services.tokens.forget(tokenId);
    return c.body(null, 204);
  });
}
