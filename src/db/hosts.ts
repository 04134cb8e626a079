import type { JobKind } from "../core/job.ts";
import type { HostRoom, HostState } from "../core/placement.ts";
import { type Sql, time } from "./scope.ts";

export interface HostRow extends HostRoom {
  address: string;
  portFirst: number;
  portLast: number;
  reservedPorts: number[];
  heartbeatAt: string;
  createdAt: string;
}

interface Raw {
  id: string;
  name: string;
  state: HostState;
  cpus: number;
  memory: string;
  disk: string;
  disk_free: string | null;
  disk_reserve: string;
  used_cpus: number;
  used_memory: string;
  used_disk: string;
  used_containers: string;
  address: string;
  labels: Record<string, string>;
  port_first: number;
  port_last: number;
  reserved_ports: number[];
  heartbeat_at: string;
  created_at: string;
}

const hostRow = (raw: Raw): HostRow => ({
  id: raw.id,
  name: raw.name,
  state: raw.state,
  cpus: raw.cpus,
  memory: Number(raw.memory),
  disk: Number(raw.disk),
  diskFree: raw.disk_free === null ? null : Number(raw.disk_free),
  diskReserve: Number(raw.disk_reserve),
  used: {
    cpus: raw.used_cpus,
    memory: Number(raw.used_memory),
    disk: Number(raw.used_disk),
    containers: Number(raw.used_containers),
  },
  address: raw.address,
  labels: raw.labels,
  portFirst: raw.port_first,
  portLast: raw.port_last,
  reservedPorts: raw.reserved_ports,
  heartbeatAt: time(raw.heartbeat_at),
  createdAt: time(raw.created_at),
});

/** All hosts, or the one with this id, with what their containers hold together. */
export async function listHosts(sql: Sql, only?: string): Promise<HostRow[]> {
  const rows = await sql<Raw[]>`
    select h.id, h.name, berth_host_state(h) as state, h.cpus, h.memory, h.disk, h.disk_free, h.disk_reserve,
      l.cpus as used_cpus, l.memory as used_memory, l.disk as used_disk, l.containers as used_containers, h.address, h.labels, h.port_first,
      h.port_last, h.reserved_ports, h.heartbeat_at, h.created_at
    from hosts h cross join lateral berth_host_load(h.id) l
    ${only === undefined ? sql`` : sql`where h.id = ${only}`} order by h.created_at, h.id`;
  return rows.map(hostRow);
}

/** Opens or closes a host for new containers and jobs; null when there is no such host. */
export async function setHostState(sql: Sql, id: string, state: "ready" | "draining"): Promise<HostRow | null> {
  await sql`update hosts set state = ${state} where id = ${id}`;
  return (await listHosts(sql, id))[0] ?? null;
}

/**
 * Removes a lost host with its containers, or with `forced` one that is alive, and cuts it off from the database. False: it
 * is unknown, or alive.
 */
export async function forgetHost(sql: Sql, id: string, forced = false): Promise<boolean> {
  const [row] = await sql<{ gone: boolean }[]>`select berth_forget_host(${id}, ${forced}) as gone`;
  if (row?.gone !== true) return false;
  // Only now can't it log in again.
  await sql`select berth_end_sessions(${id})`;
  return true;
}

/** Where a host's agent listens; null when the host is unknown. */
export async function agentUrl(sql: Sql, hostId: string): Promise<string | null> {
  const [row] = await sql<{ agent_url: string }[]>`select agent_url from hosts where id = ${hostId}`;
  return row?.agent_url ?? null;
}

/** The kind of a job that the host runs under the lease of this epoch; null: it does not. */
export async function leasedKind(sql: Sql, hostId: string, jobId: string, epoch: number): Promise<JobKind | null> {
  const [row] = await sql<{ kind: JobKind | null }[]>`select berth_leased_kind(${jobId}, ${hostId}, ${epoch}) as kind`;
  return row?.kind ?? null;
}
