import { mkdir, readFile, rename, writeFile } from "node:fs/promises";
import { dirname } from "node:path";
import type { ApiAccess } from "../core/api-access.ts";
import { BerthError } from "../core/errors.ts";
import type { HostRegistration } from "../core/host.ts";
import { hostKey } from "../core/keys.ts";
import type { Db } from "../db/connect.ts";
import { openHostSession, registerHost } from "../db/hosts-worker.ts";
import { postInternal } from "./internal-api.ts";

/** Which host this is, and what it proves that with to the API. */
export interface HostIdentity {
  id: string;
  key: string;
}

/** A host that has begun its session. */
export interface OpenedHost extends HostIdentity {
  session: number;
  rebooted: boolean;
}

/** How a host that is not known yet becomes known: it holds the secret key, or it is let in by a join token. */
export type Admission = { secretKey: string } | { api: Omit<ApiAccess, "credential">; joinToken: string | null };

/**
 * Opens the next session of the host that this is. A host is what its data directory says: `file` keeps its id, and the key
 * that it was given when it joined (0600).
 * @throws BerthError `name_taken`
 */
export async function openKnownHost(
  db: Db,
  file: string,
  registration: HostRegistration,
  admission: Admission,
): Promise<OpenedHost | "new" | "forgotten"> {
  const kept = await readIdentity(file, admission);
  return kept === null ? "new" : ((await begin(db, kept, registration)) ?? "forgotten");
}

/**
 * Registers the host, keeps its identity and opens its first session. Null: it needs a join token.
 * @throws BerthError `name_taken`, `unauthorized` for a token that can't be used, `unavailable`
 */
export async function admitHost(
  db: Db,
  file: string,
  registration: HostRegistration,
  admission: Admission,
): Promise<OpenedHost | null> {
  const admitted = await admit(db, registration, admission);
  if (admitted === null) return null;
  await keepIdentity(file, "secretKey" in admission ? { id: admitted.id } : admitted);
  return begin(db, admitted, registration);
}

async function begin(db: Db, identity: HostIdentity, registration: HostRegistration): Promise<OpenedHost | null> {
  const session = await openHostSession(db, identity.id, registration);
  return session === null ? null : { ...identity, ...session };
}

async function admit(db: Db, registration: HostRegistration, admission: Admission): Promise<HostIdentity | null> {
  if ("secretKey" in admission) {
    const id = await registerHost(db, registration);
    return { id, key: hostKey(admission.secretKey, id) };
  }
  if (admission.joinToken === null) return null;
  const access = { ...admission.api, credential: admission.joinToken };
  const answer = await postInternal(access, "/internal/hosts", registration);
  const { id, key } = answer as Partial<HostIdentity>;
  if (typeof id !== "string" || typeof key !== "string") {
    throw new BerthError("unavailable", `${admission.api.url} is not the internal listener of a Berth.`);
  }
  return { id, key };
}

async function readIdentity(file: string, admission: Admission): Promise<HostIdentity | null> {
  const text = await readFile(file, "utf8").catch((error: unknown) => {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return null;
    throw error;
  });
  if (text === null) return null;
  const { id, key } = JSON.parse(text) as { id: string; key?: string };
  if ("secretKey" in admission) return { id, key: hostKey(admission.secretKey, id) };
  return key === undefined ? null : { id, key };
}

async function keepIdentity(file: string, identity: { id: string; key?: string }): Promise<void> {
  await mkdir(dirname(file), { recursive: true, mode: 0o711 });
  await writeFile(`${file}.new`, `${JSON.stringify(identity)}\n`, { mode: 0o600, flush: true });
  await rename(`${file}.new`, file);
}
