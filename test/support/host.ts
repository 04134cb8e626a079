import type { HostRegistration } from "../../src/core/host.ts";
import type { Db } from "../../src/db/connect.ts";
import { openHostSession, registerHost } from "../../src/db/hosts-worker.ts";

export const registration: HostRegistration = {
  name: "one",
  address: "127.0.0.1",
  agentUrl: "unix:/nowhere",
  bootId: "boot-1",
  cpus: 2,
  memory: 1e9,
  disk: 1e9,
  diskFree: 1e9,
  diskReserve: 1e7,
  portFirst: 8000,
  portLast: 8010,
  reservedPorts: [],
  labels: {},
};

/** What a worker that holds the secret key does at its start. */
export async function openHost(db: Db, more: Partial<HostRegistration> = {}) {
  const host = { ...registration, ...more };
  const session = await openHostSession(db, await registerHost(db, host), host);
  if (session === null) throw new Error("the host was forgotten");
  return session;
}
