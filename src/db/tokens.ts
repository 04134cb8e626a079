import { tokenHash } from "../core/keys.ts";
import type { Role } from "../core/roles.ts";
import type { Scope } from "./scope.ts";
import { read, type Sql, type Tx, time, timeOrNull } from "./scope.ts";

/** Who asks. project null: the operator, who may act on any project. */
export interface Principal {
  tokenId: string;
  role: Role;
  project: { id: string; name: string } | null;
  /** What the token is known by; to ask later whether it was revoked. */
  tokenHash: Buffer;
}

/** Who holds the token; null when nobody does, or it was revoked. */
export async function authenticate(sql: Sql, hash: Buffer): Promise<Principal | null> {
  const [row] = await sql<{ token_id: string; role: Role; project_id: string | null; project_name: string | null }[]>`
    select token_id, role, project_id, project_name from berth_authenticate(${hash})`;
  if (row === undefined) return null;
  const project = row.project_id === null ? null : { id: row.project_id, name: row.project_name ?? "" };
  return { tokenId: row.token_id, role: row.role, project, tokenHash: hash };
}

export interface TokenRow {
  id: string;
  name: string;
  role: Role;
  createdAt: string;
  revokedAt: string | null;
}

interface RawToken {
  id: string;
  name: string;
  role: Role;
  created_at: string;
  revoked_at: string | null;
}

const tokenRow = (row: RawToken): TokenRow => ({
  id: row.id,
  name: row.name,
  role: row.role,
  createdAt: time(row.created_at),
  revokedAt: timeOrNull(row.revoked_at),
});

/** Adds a token of the scope's project; only its hash is kept. */
export async function insertToken(
  tx: Tx,
  token: { id: string; projectId: string; role: Role; name: string; text: string },
): Promise<TokenRow> {
  const rows = await tx<RawToken[]>`
    insert into tokens (id, project_id, role, name, hash)
    values (${token.id}, ${token.projectId}, ${token.role}, ${token.name}, ${tokenHash(token.text)})
    returning id, name, role, created_at, revoked_at`;
  return rows.map(tokenRow)[0] as TokenRow;
}

/** A project's tokens that were not revoked, newest first. */
export async function listTokens(sql: Sql, scope: Scope): Promise<TokenRow[]> {
  const rows = await read<RawToken>(
    sql,
    scope,
    sql`select id, name, role, created_at, revoked_at from tokens
      where project_id = ${scope.projectId} and revoked_at is null order by tokens.created_at desc, tokens.id limit 1000`,
  );
  return rows.map(tokenRow);
}

/** Revokes a token for good and tells every API process; null when the project has no such token. */
export async function revokeToken(tx: Tx, projectId: string, id: string): Promise<TokenRow | null> {
  const rows = await tx<RawToken[]>`
    update tokens set revoked_at = coalesce(revoked_at, now()) where project_id = ${projectId} and id = ${id}
    returning id, name, role, created_at, revoked_at`;
  return rows.map(tokenRow)[0] ?? null;
}
