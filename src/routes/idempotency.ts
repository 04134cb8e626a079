import { createHash } from "node:crypto";
import { z } from "@hono/zod-openapi";
import { open, seal } from "../core/keys.ts";
import { isKeyTaken, keepAnswer, takeKey } from "../db/idempotency.ts";
import type { Scope } from "../db/scope.ts";
import { type Tx, transact } from "../db/scope.ts";
import type { Request, Services } from "./context.ts";
import { invalidRequest } from "./problem.ts";

/** The header `Idempotency-Key` of every POST. */
export const idempotencyHeader = z.object({
  "idempotency-key": z.string().max(255).optional().openapi({
    description: "The same key with the same request gets the same answer, and nothing is done twice.",
    example: "deploy-2025-11-24-1",
  }),
});

/**
 * Does the effect of a POST in one transaction, once per Idempotency-Key: the key, the effect and the answer are
 * committed together or not at all. The effect's value is the answer, as JSON. `request` is what must be equal for it to be the same request; by default its body.
 * `secret`: the answer holds a secret and is kept encrypted.
 */
export async function once<T extends object>(
  services: Services,
  c: Request,
  effect: (tx: Tx) => Promise<T>,
  more: { request?: string; secret?: boolean; scope?: Scope } = {},
): Promise<T> {
  const scope = more.scope ?? c.var.scope;
  const { projectId } = scope;
  const key = c.req.header("idempotency-key");
  if (key === undefined) return transact(services.sql, scope, effect);
  if (!/^[\x21-\x7e]{1,255}$/.test(key)) {
    throw invalidRequest([
      { pointer: "header/Idempotency-Key", detail: "Must be 1 to 255 printable characters without spaces." },
    ]);
  }
  // Only a body that was read within its limit; operations without a body have none that counts.
  const request = more.request ?? (await Promise.resolve(c.req.bodyCache.text)) ?? "";
  const hash = createHash("sha256").update(`${c.req.method} ${c.req.path}\n${request}`).digest();
  return transact(services.sql, scope, async (tx) => {
    const kept = await takeKey(tx, projectId, key, hash);
    if (kept !== null) {
      c.header("Idempotency-Replayed", "true");
      return unseal(services, kept.body) as T;
    }
    const answer = await effect(tx);
    const body =
      more.secret === true ? { sealed: seal(services.secretKey, "idempotency", JSON.stringify(answer)) } : answer;
    await keepAnswer(tx, projectId, key, body);
    return answer;
  });
}

/** Whether `once` has an answer for the request's key: what is done outside of its transaction need not be done again. */
export async function isAnswered(services: Services, c: Request): Promise<boolean> {
  const key = c.req.header("idempotency-key");
  return key !== undefined && (await isKeyTaken(services.sql, c.var.scope, key));
}

function unseal(services: Services, body: unknown): unknown {
  const sealed = typeof body === "object" && body !== null && "sealed" in body ? body.sealed : undefined;
  return typeof sealed === "string" ? (JSON.parse(open(services.secretKey, "idempotency", sealed)) as unknown) : body;
}
