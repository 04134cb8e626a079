import { BerthError } from "../core/errors.ts";
import { type HostRegistration, nameTaken } from "../core/host.ts";
import { newId } from "../core/ids.ts";
import { admitHost } from "./host-login.ts";
import { type Pool, type Sql, time, violation } from "./scope.ts";

/** A join token that can still be used. */
export interface JoinTokenRow {
  id: string;
  usesLeft: number;
  expiresAt: string;
  createdAt: string;
}

interface Raw {
  id: string;
  uses_left: number;
  expires_at: string;
  created_at: string;
}

const tokenRow = (raw: Raw): JoinTokenRow => ({
  id: raw.id,
  usesLeft: raw.uses_left,
  expiresAt: time(raw.expires_at),
  createdAt: time(raw.created_at),
});

/** Makes a token with which so many hosts may join within so many seconds. */
export async function insertJoinToken(sql: Sql, uses: number, seconds: number): Promise<JoinTokenRow> {
  const rows = await sql<Raw[]>`
    insert into join_tokens (id, uses_left, expires_at)
    values (${newId("joinToken")}, ${uses}, now() + make_interval(secs => ${seconds}))
    returning id, uses_left, expires_at, created_at`;
  return rows.map(tokenRow)[0] as JoinTokenRow;
}

/** The tokens that a host could join with now, newest first. */
export async function listJoinTokens(sql: Sql): Promise<JoinTokenRow[]> {
  const rows = await sql<Raw[]>`
    select id, uses_left, expires_at, created_at from join_tokens
    where uses_left > 0 and expires_at > now() and revoked_at is null order by join_tokens.created_at desc, id limit 1000`;
  return rows.map(tokenRow);
}

/** Nobody can join with it any longer; hosts that have joined stay. False: there is no such token. */
export async function revokeJoinToken(sql: Sql, id: string): Promise<boolean> {
  const rows = await sql`
    update join_tokens set revoked_at = coalesce(revoked_at, now()) where id = ${id} returning id`;
  return rows.length === 1;
}

/**
 * Registers a host by a join token, one of whose uses it takes, and lets it log in to the database; the new host's id.
 * Whoever asks again because the answer was lost gets the same one, until the host has begun its first session.
 * @param keyOf what the host with an id will prove itself with
 * @throws BerthError `unauthorized` when the token has no use left, `name_taken`
 */
export async function joinHost(
  sql: Pool,
  tokenId: string,
  host: HostRegistration,
  keyOf: (id: string) => string,
): Promise<string> {
  try {
    return await sql.begin(async (tx) => {
      const [token] = await tx<{ usable: boolean }[]>`
        select uses_left > 0 and expires_at > now() and revoked_at is null as usable from join_tokens
        where id = ${tokenId} for update`;
      const [asked] = await tx<{ id: string }[]>`
        select id from hosts
        where name = ${host.name} and session = 0 and join_token_id = ${tokenId} and agent_url = ${host.agentUrl}`;
      if (asked !== undefined) return asked.id;
      if (token?.usable !== true) {
        throw new BerthError("unauthorized", "The join token has expired, was used up or was revoked.");
      }
      await tx`update join_tokens set uses_left = uses_left - 1 where id = ${tokenId}`;
      const id = newId("host");
      await tx`
        insert into hosts (id, name, address, agent_url, boot_id, cpus, memory, disk, disk_free, disk_reserve,
          port_first, port_last, reserved_ports, labels, join_token_id)
        values (${id}, ${host.name}, ${host.address}, ${host.agentUrl}, ${host.bootId}, ${host.cpus}, ${host.memory},
          ${host.disk}, ${host.diskFree}, ${host.diskReserve}, ${host.portFirst}, ${host.portLast}, ${host.reservedPorts},
          ${JSON.stringify(host.labels)}::text::jsonb, ${tokenId})`;
      await admitHost(tx, { id, key: keyOf(id) });
      return id;
    });
  } catch (error) {
    throw violation(error) === "hosts_name_key" ? nameTaken(host.name) : error;
  }
}
