import { createRoute, type RouteConfig, type z } from "@hono/zod-openapi";
import type { MiddlewareHandler } from "hono";
import { BerthError, type ErrorCode } from "../core/errors.ts";
import { allows } from "../core/roles.ts";
import type { Env } from "./context.ts";
import { jsonBody } from "./json-body.ts";
import { type OperationId, permissions } from "./permissions.ts";
import { escapePointer, invalidRequest, Problem } from "./problem.ts";

/** What every operation says of itself; the rest is `createRoute`'s. */
interface OperationFields<P> {
  path: P;
  operationId: OperationId;
  summary: string;
  tag: string;
  /** The errors, beyond those of every operation, that a client should expect. */
  errors?: readonly ErrorCode[];
}

const always: readonly ErrorCode[] = ["invalid_request", "unavailable", "internal"];
const guarded: readonly ErrorCode[] = ["unauthorized", "forbidden", "too_many_requests"];

/**
 * A route of the API: its schema, its documented errors, and, before anything of the request is read, the check that
 * the token's role may do it.
 */
export function operation<P extends string, R extends Omit<RouteConfig, "path"> & OperationFields<P>>(config: R) {
  const { tag, errors, ...route } = config;
  const isPublic = permissions[config.operationId] === "public";
  const body = config.request?.body;
  const json = body !== undefined && "application/json" in body.content;
  const others = Object.keys(body?.content ?? {}).filter((type) => type !== "application/json");
  const codes = [
    ...always,
    ...(isPublic ? [] : guarded),
    ...(json ? (["invalid_json", "body_too_large", "unsupported_media_type"] as const) : []),
    ...(errors ?? []),
  ];
  return createRoute<P, R>({
    ...route,
    tags: [tag],
    security: isPublic ? [] : [{ token: [] }],
    middleware: [
      ...(isPublic ? [] : [authorize(config.operationId)]),
      refuseNul,
      ...(json ? [jsonBody(body.required === true, others)] : []),
    ],
    responses: { ...route.responses, ...problemResponses(codes) },
  } as unknown as R);
}

/** Refuses who has a lesser role than the operation needs. */
function authorize(id: OperationId): MiddlewareHandler<Env> {
  const needed = permissions[id];
  return async (c, next) => {
    const { role } = c.var.principal;
    if (needed !== "public" && !allows(role, needed)) {
      throw new BerthError("forbidden", `${id} needs the role ${needed}; this token has ${role}.`);
    }
    await next();
  };
}

/** Refuses what no column of Postgres can hold, which a body's check does for bodies. */
const refuseNul: MiddlewareHandler<Env> = async (c, next) => {
  const bad = Object.entries(c.req.queries()).find(([, values]) => values.some((value) => value.includes("\0")));
  if (bad !== undefined) {
    throw invalidRequest([{ pointer: `query/${escapePointer(bad[0])}`, detail: "Text must not have NUL characters." }]);
  }
  await next();
};

/** The problem answers of the codes, one a status, with the codes in its description. */
function problemResponses(codes: readonly ErrorCode[]): RouteConfig["responses"] {
  const byStatus = new Map<number, BerthError[]>();
  for (const code of new Set(codes)) {
    const error = new BerthError(code, "");
    byStatus.set(error.status, [...(byStatus.get(error.status) ?? []), error]);
  }
  return Object.fromEntries(
    [...byStatus].map(([status, errors]) => [
      status,
      {
        description: errors.map((error) => `\`${error.code}\`: ${error.title}`).join("; "),
        content: { "application/problem+json": { schema: Problem } },
      },
    ]),
  );
}

/** A JSON answer. */
export function json<S extends z.ZodType>(schema: S, description: string) {
  return { description, content: { "application/json": { schema } } };
}

/** A JSON body that must be there. */
export function body<S extends z.ZodType>(schema: S) {
  return { required: true, content: { "application/json": { schema } } };
}
