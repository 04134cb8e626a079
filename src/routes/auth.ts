import type { MiddlewareHandler } from "hono";
import { BerthError } from "../core/errors.ts";
import { findProject } from "../db/projects.ts";
import type { Env, Services } from "./context.ts";
import { notFound } from "./parameters.ts";

/** The project that the operator acts on without naming one. */
const operatorsProject = "default";

/** Who asks, and for which project: what the middleware finds out. */
type Identity = Pick<Env["Variables"], "principal" | "project" | "scope">;

/**
 * Finds out whose a token is and for which project it asks. A token of a project acts on that one; the operator's on the
 * one that is named (id or name), else on `default`. A project that the token does not belong to does not exist.
 * @throws BerthError `unauthorized`, `not_found`
 */
export function identifier(services: Services): (token: string, named: string | undefined) => Promise<Identity> {
  // Projects keep their names and are not removed.
  const known = new Map<string, { id: string; name: string }>();

  const operated = async (named: string) => {
    const before = known.get(named);
    if (before !== undefined) return before;
    const found = await findProject(services.sql, { projectId: "", operator: true }, named);
    if (found === null) throw notFound("project");
    const project = { id: found.id, name: found.name };
    known.set(named, project);
    return project;
  };

  return async (token, named) => {
    const principal = await services.tokens.find(token);
    if (principal === null) throw new BerthError("unauthorized", "The token is not valid, or was revoked.");
    const project = principal.project ?? (await operated(named ?? operatorsProject));
    if (named !== undefined && named !== project.id && named !== project.name) throw notFound("project");
    return { principal, project, scope: { projectId: project.id, operator: principal.project === null } };
  };
}

/** Lets in who sends a token as `Authorization: Bearer`; `Berth-Project` names the project. */
export function authenticate(services: Services): MiddlewareHandler<Env> {
  const identify = identifier(services);
  return async (c, next) => {
    const token = /^Bearer ([\x21-\x7e]{1,512})$/i.exec(c.req.header("authorization") ?? "")?.[1];
    if (token === undefined) throw new BerthError("unauthorized", "Send a token: Authorization: Bearer berth_….");
    const { principal, project, scope } = await identify(token, c.req.header("berth-project"));
    c.set("principal", principal);
    c.set("project", project);
    c.set("scope", scope);
    await next();
  };
}
