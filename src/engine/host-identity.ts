import { mkdir, readFile, rename, writeFile } from "node:fs/promises";
import { dirname } from "node:path";
import type { ApiAccess } from "../core/api-access.ts";
import { BerthError } from "../core/errors.ts";
import type { HostRegistration } from "../core/host.ts";
import { hostKey } from "../core/keys.ts";
import type { DatabaseAddress } from "../db/client.ts";
import { type Connection, connect as openConnection } from "../db/connect.ts";
import { admitHost } from "../db/host-login.ts";
import { openHostSession, registerHost } from "../db/hosts-worker.ts";
import { postInternal } from "./internal-api.ts";

/** Which host this is, and what it proves that with to the API and the database. */
export interface HostIdentity {
  id: string;
  key: string;
}

/** A host that has begun its session. */
export interface OpenedHost extends HostIdentity {
  session: number;
  rebooted: boolean;
}

/**
 * How a host that is not known yet becomes known: it holds the secret key, and is let in by the database's owner; or it is
 * let in by a join token. From then on the two are one.
 */
export type Admission =
  | { secretKey: string; database: DatabaseAddress }
  | { api: Omit<ApiAccess, "credential">; joinToken: string | null };

/** What `openHost` goes by. */
export interface HostOpening {
  /** Where the identity is kept: a host is what its data directory says. */
  file: string;
  registration: HostRegistration;
  admission: Admission;
  /** Connects to the database as this host; null: it is not known. */
  connect: (identity: HostIdentity) => Promise<Connection | null>;
  /** Called when this was a host, was forgotten, and is not let in again. */
  onForgotten: () => Promise<void>;
}

/**
 * Finds out which host this is and opens its next session; one that is new or was forgotten is registered first, or joins.
 * Null: it needs a join token.
 * @throws BerthError `name_taken`, `unauthorized` for a token that can't be used, `unavailable`
 */
export async function openHost(opening: HostOpening): Promise<{ host: OpenedHost; connection: Connection } | null> {
  const { file, registration, admission } = opening;
  const kept = await readIdentity(file, admission);
  const known = kept === null ? null : await begin(opening, kept);
  if (known !== null) return known;

  let admitted: HostIdentity | null = null;
  try {
    admitted = await admit(registration, admission);
  } finally {
    if (admitted === null && kept !== null) await opening.onForgotten();
  }
  if (admitted === null) return null;
  await keepIdentity(file, "secretKey" in admission ? { id: admitted.id } : admitted);
  const opened = await begin(opening, admitted);
  if (opened === null) throw new Error("the host was forgotten as soon as it had joined");
  return opened;
}

/** null: the host is not known. */
async function begin(
  { connect, registration }: HostOpening,
  identity: HostIdentity,
): Promise<{ host: OpenedHost; connection: Connection } | null> {
  const connection = await connect(identity);
  if (connection === null) return null;
  const session = await openHostSession(connection.db, identity.id, registration);
  if (session !== null) return { host: { ...identity, ...session }, connection };
  await connection.close();
  return null;
}

async function admit(registration: HostRegistration, admission: Admission): Promise<HostIdentity | null> {
  if ("secretKey" in admission) return register(registration, admission);
  if (admission.joinToken === null) return null;
  const access = { ...admission.api, credential: admission.joinToken };
  const answer = await postInternal(access, "/internal/hosts", registration);
  const { id, key } = answer as { id?: unknown; key?: unknown };
  if (typeof id !== "string" || typeof key !== "string") {
    throw new BerthError("unavailable", `${admission.api.url} is not the internal listener of a Berth.`);
  }
  return { id, key };
}

/** As the database's owner, for that and for nothing else. */
async function register(
  registration: HostRegistration,
  { secretKey, database }: Extract<Admission, { secretKey: string }>,
): Promise<HostIdentity> {
  const owner = openConnection(database, "owner", { max: 1 });
  try {
    const id = await registerHost(owner.db, registration);
    const identity = { id, key: hostKey(secretKey, id) };
    await admitHost(owner.sql, identity);
    return identity;
  } finally {
    await owner.close();
  }
}

async function readIdentity(file: string, admission: Admission): Promise<HostIdentity | null> {
  const text = await readFile(file, "utf8").catch((error: unknown) => {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return null;
    throw error;
  });
  if (text === null) return null;
  const { id, key } = JSON.parse(text) as Omit<HostIdentity, "key"> & { key?: string };
  if ("secretKey" in admission) return { id, key: hostKey(admission.secretKey, id) };
  return key === undefined ? null : { id, key };
}

async function keepIdentity(file: string, identity: { id: string; key?: string }): Promise<void> {
  await mkdir(dirname(file), { recursive: true, mode: 0o711 });
  await writeFile(`${file}.new`, `${JSON.stringify(identity)}\n`, { mode: 0o600, flush: true });
  await rename(`${file}.new`, file);
}
