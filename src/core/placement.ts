import type { Resources } from "./container.ts";
import { BerthError } from "./errors.ts";

/** `lost`: its worker has not been heard of for 30 seconds. */
export type HostState = "ready" | "draining" | "lost";

/** A host as placement sees it: what it has, and what all containers on it were promised. Bytes and cores. */
export interface HostRoom {
  id: string;
  name: string;
  state: HostState;
  labels: Record<string, string>;
  cpus: number;
  memory: number;
  disk: number;
  used: { cpus: number; memory: number; disk: number; containers: number };
  /** What of its disk is free, by what its worker told last (null: nothing yet), and what of that it keeps. */
  diskFree: number | null;
  diskReserve: number;
}

/** Which hosts a container may be placed on; what is not said allows all. */
export interface Placement {
  /** Id or name of the one host. */
  host?: string;
  /** Labels that the host must have, with these values. */
  hostLabels?: Record<string, string>;
}

/**
 * How many times a host's own amount may be promised. CPU limits are ceilings that are shared well; disks are sparse
 * files, and nothing is placed where they have left too little free; memory is what hurts neighbours, so it is promised with more care.
 */
export const overcommit = { cpus: 50, memory: 2, disk: 10 } as const;

/** A worker numbers its containers by slots (uid range, address); it has this many. */
export const slotsPerHost = 2_048;

/** Bytes in the unit that people use for them. */
function bytes(n: number): string {
  return n >= 2 ** 30 ? `${(n / 2 ** 30).toFixed(1)} GiB` : `${Math.floor(n / 2 ** 20)} MiB`;
}

/** Why nothing more may come on a host's disk, in plain words; null: it may, as far as is known. */
export function keptFree({ diskFree, diskReserve }: Pick<HostRoom, "diskFree" | "diskReserve">): string | null {
  if (diskFree === null || diskFree >= diskReserve) return null;
  return `has ${bytes(diskFree)} of its disk free, and keeps ${bytes(diskReserve)}`;
}

/** Why the host can't take the container, in plain words; null when it can. */
function refusal(host: HostRoom, want: Resources, placement: Placement): string | null {
  const labels = Object.entries(placement.hostLabels ?? {});
  const missing = labels.find(([name, value]) => host.labels[name] !== value);
  if (missing !== undefined) return `does not have the label ${missing.join("=")}`;
  if (host.state === "draining") return "is draining";
  if (host.state === "lost") return "has not been heard of lately";
  if (host.used.containers >= slotsPerHost) return `has all its ${slotsPerHost} places taken`;
  if (want.cpus > host.cpus) return `has ${host.cpus} cores, and ${want.cpus} are asked`;
  const left = {
    cpus: host.cpus * overcommit.cpus - host.used.cpus,
    memory: host.memory * overcommit.memory - host.used.memory,
    disk: host.disk * overcommit.disk - host.used.disk,
  };
  if (want.cpus > left.cpus) return `has ${left.cpus.toFixed(1)} cores left of what it may promise`;
  if (want.memory > host.memory) return `has ${bytes(host.memory)} of memory, and ${bytes(want.memory)} is asked`;
  if (want.memory > left.memory) return `has ${bytes(left.memory)} of memory left, and ${bytes(want.memory)} is asked`;
  if (want.disk > left.disk) return `has ${bytes(left.disk)} of disk left, and ${bytes(want.disk)} is asked`;
  return keptFree(host);
}

/** Whether the host was promised more than it may, as two placements at the same time can lead to. */
export function isOverfull(host: HostRoom): boolean {
  return (
    host.used.containers > slotsPerHost ||
    host.used.cpus > host.cpus * overcommit.cpus ||
    host.used.memory > host.memory * overcommit.memory ||
    host.used.disk > host.disk * overcommit.disk
  );
}

/**
 * Chooses, of the hosts that the placement allows, the one with the largest part of its memory unpromised; the id decides
 * between equals. `refused`: hosts that can't give what their room does not tell, such as a port, each with its error.
 * @throws BerthError `no_capacity`, saying of each host why not; when hosts have room but have all refused, what the
 * first of them said
 */
export function place<H extends HostRoom>(
  hosts: readonly H[],
  want: Resources,
  placement: Placement = {},
  refused: ReadonlyMap<string, BerthError> = new Map(),
): H {
  const { host: named } = placement;
  const allowed = named === undefined ? hosts : hosts.filter((host) => host.id === named || host.name === named);
  const free = (host: HostRoom) => 1 - host.used.memory / (host.memory * overcommit.memory);
  const roomy = allowed
    .filter((host) => refusal(host, want, placement) === null)
    .sort((a, b) => free(b) - free(a) || (a.id < b.id ? -1 : 1));
  const best = roomy.find((host) => !refused.has(host.id));
  if (best !== undefined) return best;
  const said = roomy.map((host) => refused.get(host.id))[0];
  if (said !== undefined) throw said;
  if (hosts.length === 0) throw new BerthError("no_capacity", "No host has joined yet, so nothing can run.");
  if (allowed.length === 0) throw new BerthError("no_capacity", `There is no host ${String(named)}.`);
  const reasons = allowed.map((host) => `${host.name} ${String(refusal(host, want, placement))}`);
  throw new BerthError("no_capacity", `No host has room: ${reasons.join("; ")}.`);
}
