import { mkdir, readFile, rename, writeFile } from "node:fs/promises";
import { dirname } from "node:path";
import type { ApiAccess } from "../core/api-access.ts";
import { BerthError } from "../core/errors.ts";
import type { HostRegistration } from "../core/host.ts";
import { hostKey } from "../core/keys.ts";
import type { Connection, Db } from "../db/connect.ts";
import { openHostSession, registerHost } from "../db/hosts-worker.ts";
import { postInternal } from "./internal-api.ts";

/**
 * Which host this is, and what it proves that with to the API; with the password of a database that it can reach only
 * through the API, if there is one.
 */
export interface HostIdentity {
  id: string;
  key: string;
  databasePassword?: string;
}

/** A host that has begun its session. */
export interface OpenedHost extends HostIdentity {
  session: number;
  rebooted: boolean;
}

/** How a host that is not known yet becomes known: it holds the secret key, or it is let in by a join token. */
export type Admission = { secretKey: string } | { api: Omit<ApiAccess, "credential">; joinToken: string | null };

/** What `openHost` goes by. */
export interface HostOpening {
  /** Where the identity is kept: a host is what its data directory says. */
  file: string;
  registration: HostRegistration;
  admission: Admission;
  /** Connects to the database as this host; null: it can't be reached by one that the API does not know (yet). */
  connect: (identity: HostIdentity | null) => Promise<Connection | null>;
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
  const before = await opening.connect(kept);
  const known = kept === null || before === null ? null : await begin(before.db, kept, registration);
  if (known !== null && before !== null) return { host: known, connection: before };

  let admitted: HostIdentity | null = null;
  try {
    admitted = await admit(before, registration, admission);
  } finally {
    if (admitted === null && kept !== null) await opening.onForgotten();
  }
  if (admitted === null) return null;
  await keepIdentity(file, "secretKey" in admission ? { id: admitted.id } : admitted);
  const connection = before ?? (await opening.connect(admitted));
  const host = connection === null ? null : await begin(connection.db, admitted, registration);
  if (connection === null || host === null) throw new Error("the host was forgotten as soon as it had joined");
  return { host, connection };
}

async function begin(db: Db, identity: HostIdentity, registration: HostRegistration): Promise<OpenedHost | null> {
  const session = await openHostSession(db, identity.id, registration);
  return session === null ? null : { ...identity, ...session };
}

async function admit(
  connection: Connection | null,
  registration: HostRegistration,
  admission: Admission,
): Promise<HostIdentity | null> {
  if ("secretKey" in admission) {
    if (connection === null) throw new Error("a host that holds the secret key reaches its database by itself");
    const id = await registerHost(connection.db, registration);
    return { id, key: hostKey(admission.secretKey, id) };
  }
  if (admission.joinToken === null) return null;
  const access = { ...admission.api, credential: admission.joinToken };
  const answer = await postInternal(access, "/internal/hosts", registration);
  const { id, key, databasePassword } = answer as { id?: unknown; key?: unknown; databasePassword?: unknown };
  if (typeof id !== "string" || typeof key !== "string") {
    throw new BerthError("unavailable", `${admission.api.url} is not the internal listener of a Berth.`);
  }
  return { id, key, ...(typeof databasePassword === "string" ? { databasePassword } : {}) };
}

async function readIdentity(file: string, admission: Admission): Promise<HostIdentity | null> {
  const text = await readFile(file, "utf8").catch((error: unknown) => {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return null;
    throw error;
  });
  if (text === null) return null;
  const { id, key, ...more } = JSON.parse(text) as Omit<HostIdentity, "key"> & { key?: string };
  if ("secretKey" in admission) return { id, key: hostKey(admission.secretKey, id) };
  return key === undefined ? null : { id, key, ...more };
}

async function keepIdentity(file: string, identity: { id: string; key?: string }): Promise<void> {
  await mkdir(dirname(file), { recursive: true, mode: 0o711 });
  await writeFile(`${file}.new`, `${JSON.stringify(identity)}\n`, { mode: 0o600, flush: true });
  await rename(`${file}.new`, file);
}
