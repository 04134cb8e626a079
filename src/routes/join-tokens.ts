import { z } from "@hono/zod-openapi";
import { formatCredential, joinKey } from "../core/keys.ts";
import { insertJoinToken, listJoinTokens, revokeJoinToken } from "../db/hosts-join.ts";
import type { App, Services } from "./context.ts";
import { idempotencyHeader, once } from "./idempotency.ts";
import { body, json, operation } from "./operation.ts";
import { idParam, listSchema, notFound } from "./parameters.ts";

const tag = "Hosts";

const JoinToken = z
  .object({
    id: z.string().openapi({ example: "jtk_0q3xr5kkp8wmz2v9d1hc" }),
    usesLeft: z.int().openapi({ description: "How many more hosts can join with it." }),
    expiresAt: z.iso.datetime(),
    createdAt: z.iso.datetime(),
  })
  .openapi("JoinToken");

const create = operation({
  method: "post",
  path: "/v1/join-tokens",
  operationId: "createJoinToken",
  tag,
  summary: "Create a token with which hosts can join",
  description: "The token itself is only in this answer. A host needs it once: then it has a key of its own.",
  request: {
    headers: idempotencyHeader,
    body: body(
      z
        .strictObject({
          uses: z.int().min(1).max(1_000).default(1).openapi({ description: "How many hosts can join with it." }),
          expiresInSeconds: z.int().min(1).max(604_800).default(3_600),
        })
        .openapi("JoinTokenCreate", { example: { uses: 1, expiresInSeconds: 3_600 } }),
    ),
  },
  responses: {
    201: json(
      JoinToken.extend({
        token: z.string().openapi({ description: "For `BERTH_JOIN_TOKEN`.", example: "jtk_….…" }),
      }).openapi("NewJoinToken"),
      "The token",
    ),
  },
  errors: ["idempotency_key_reused"],
});

const list = operation({
  method: "get",
  path: "/v1/join-tokens",
  operationId: "listJoinTokens",
  tag,
  summary: "List the tokens with which hosts can join now",
  responses: { 200: json(listSchema("JoinTokenList", JoinToken), "The tokens") },
});

const revoke = operation({
  method: "delete",
  path: "/v1/join-tokens/{id}",
  operationId: "revokeJoinToken",
  tag,
  summary: "Revoke a join token",
  description: "Hosts that have joined with it stay.",
  request: { params: idParam("joinToken") },
  responses: { 204: { description: "It is revoked" } },
  errors: ["not_found"],
});

export function addJoinTokens(app: App, services: Services): void {
  const { sql, secretKey } = services;

  app.openapi(create, async (c) => {
    const { uses, expiresInSeconds } = c.req.valid("json");
    const made = await once(
      services,
      c,
      async (tx) => {
        const row = await insertJoinToken(tx, uses, expiresInSeconds);
        return { ...row, token: formatCredential({ id: row.id, key: joinKey(secretKey, row.id) }) };
      },
      { secret: true },
    );
    return c.json(made, 201);
  });

  app.openapi(list, async (c) => c.json({ items: await listJoinTokens(sql), nextCursor: null }, 200));

  app.openapi(revoke, async (c) => {
    if (!(await revokeJoinToken(sql, c.req.valid("param").id))) throw notFound("join token");
    return c.body(null, 204);
  });
}
