import { BerthError } from "./errors.ts";

/** A host's name: as machines are called. */
export const hostNamePattern = /^[A-Za-z0-9][A-Za-z0-9._-]{0,252}$/;

/** A worker's host as it registers itself: names, where its agent listens, what it has (cores, bytes, ports). */
export interface HostRegistration {
  name: string;
  /** Where clients reach published ports. */
  address: string;
  /** `unix:<path>` on the API's machine, else `tls://<address>:<port>`. */
  agentUrl: string;
  /** The kernel's, new at each start of the machine. */
  bootId: string;
  cpus: number;
  memory: number;
  disk: number;
  /** What of its disk is free now, and what of that it keeps. */
  diskFree: number;
  diskReserve: number;
  portFirst: number;
  portLast: number;
  /** Ports that the host itself uses. */
  reservedPorts: number[];
  /** What containers can ask of the host that they are placed on. */
  labels: Record<string, string>;
}

/** What a host keeps free of a disk of so many bytes: a twentieth, and 10 GiB at most. */
export function diskReserve(total: number): number {
  return Math.min(Math.floor(total / 20), 10 * 2 ** 30);
}

/** Two hosts with one name: which of them is meant is for the operator to say. */
export function nameTaken(name: string): BerthError {
  return new BerthError(
    "name_taken",
    `There is a host named ${name} already. Give this one another BERTH_HOST_NAME or, when it replaces that one, forget that one first: DELETE /v1/hosts/{id}.`,
  );
}
