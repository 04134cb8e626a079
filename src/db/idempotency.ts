import { BerthError } from "../core/errors.ts";
import { read, type Scope, type Sql, type Tx } from "./scope.ts";

/**
 * Takes the key for this request. Null: it is new, and the caller must `keepAnswer` in the same transaction; a second
 * request with the key waits here until the first has committed or not, and then gets its answer's body.
 * @throws BerthError `idempotency_key_reused` when the key came with another request.
 */
export async function takeKey(
  tx: Tx,
  projectId: string,
  key: string,
  requestHash: Buffer,
): Promise<{ body: unknown } | null> {
  const taken = await tx`
    insert into idempotency_keys (project_id, key, request_hash, status, response)
    values (${projectId}, ${key}, ${requestHash}, 0, 'null'::jsonb) on conflict do nothing returning key`;
  if (taken.length === 1) return null;
  const [kept] = await tx<{ request_hash: Buffer; response: unknown }[]>`
    select request_hash, response from idempotency_keys where project_id = ${projectId} and key = ${key}`;
  if (kept === undefined || !kept.request_hash.equals(requestHash)) {
    throw new BerthError("idempotency_key_reused", `Idempotency-Key ${JSON.stringify(key)} came with another request.`);
  }
  return { body: kept.response };
}

/** Whether a request with the key has been answered. */
export async function isKeyTaken(sql: Sql, scope: Scope, key: string): Promise<boolean> {
  const where = sql`project_id = ${scope.projectId} and key = ${key}`;
  return (await read(sql, scope, sql`select 1 as taken from idempotency_keys where ${where}`)).length > 0;
}

/** Keeps the answer of the key taken in this transaction. */
export async function keepAnswer(tx: Tx, projectId: string, key: string, body: unknown): Promise<void> {
  await tx`
    update idempotency_keys set status = 200, response = ${JSON.stringify(body)}::text::jsonb
    where project_id = ${projectId} and key = ${key}`;
}
