import type { OpenAPIHono } from "@hono/zod-openapi";
import type { Context } from "hono";
import type { Pool, Scope } from "../db/scope.ts";
import type { Principal } from "../db/tokens.ts";
import type { Wakeups } from "../db/wakeups.ts";
import type { BlobStore } from "../image/blobs.ts";
import type { Log } from "../log.ts";
import type { Agents } from "./agents.ts";
import type { Repositories } from "./git/repositories.ts";
import type { OpenStreams } from "./open-streams.ts";
import type { TokenCache } from "./token-cache.ts";

/** What the routes are given by api.ts; tests give their own. */
export interface Services {
  sql: Pool;
  wakeups: Wakeups;
  blobs: BlobStore;
  agents: Agents;
  tokens: TokenCache;
  streams: OpenStreams;
  repositories: Repositories;
  log: Log;
  /** Seals credentials that jobs carry. */
  secretKey: string;
  corsOrigins: readonly string[];
  /** Where clients reach the API; null: where they say that they do. */
  publicUrl: string | null;
  limits: Limits;
}

/** Bytes and counts that bound what one request, or one project, can take of the API. */
export interface Limits {
  contextBytes: number;
  /** Requests of one project that wait or stream at the same time. */
  heldRequests: number;
  /** Uploads of one project that are stored at the same time. */
  uploads: number;
}

/** What the middleware has found out about a request. */
export interface Env {
  Variables: {
    requestId: string;
    principal: Principal;
    /** The project that the request acts on. */
    project: { id: string; name: string };
    scope: Scope;
  };
}

export type App = OpenAPIHono<Env>;
export type Request = Context<Env>;
