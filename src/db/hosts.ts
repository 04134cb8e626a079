import type { HostRoom } from "../core/placement.ts";
import { type Sql, time } from "./scope.ts";

/** A host is taken for dead when its worker was not heard of for so long. */
export const silentSeconds = 30;

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
  state: HostRoom["state"];
  alive: boolean;
  cpus: number;
  memory: string;
  disk: string;
  used_cpus: number;
  used_memory: string;
  used_disk: string;
  used_containers: string;
  address: string;
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
  alive: raw.alive,
  cpus: raw.cpus,
  memory: Number(raw.memory),
  disk: Number(raw.disk),
  used: {
    cpus: raw.used_cpus,
    memory: Number(raw.used_memory),
    disk: Number(raw.used_disk),
    containers: Number(raw.used_containers),
  },
  address: raw.address,
  portFirst: raw.port_first,
  portLast: raw.port_last,
  reservedPorts: raw.reserved_ports,
  heartbeatAt: time(raw.heartbeat_at),
  createdAt: time(raw.created_at),
});

/** All hosts, or one of them, with what their containers hold together. */
export async function listHosts(sql: Sql, only?: string): Promise<HostRow[]> {
  const rows = await sql<Raw[]>`
    select h.id, h.name, h.state, h.heartbeat_at > now() - make_interval(secs => ${silentSeconds}) as alive, h.cpus,
      h.memory, h.disk, l.cpus as used_cpus, l.memory as used_memory, l.disk as used_disk, l.containers as used_containers,
      h.address, h.port_first, h.port_last, h.reserved_ports, h.heartbeat_at, h.created_at
    from hosts h cross join lateral berth_host_load(h.id) l
    ${only === undefined ? sql`` : sql`where h.id = ${only} or h.name = ${only}`} order by h.created_at, h.id`;
  return rows.map(hostRow);
}

/** Opens or closes a host for new containers; null when there is no such host that can be changed. */
export async function setHostState(sql: Sql, id: string, state: "active" | "draining"): Promise<HostRow | null> {
  const changed =
    await sql`update hosts set state = ${state} where (id = ${id} or name = ${id}) and state <> 'gone' returning id`;
  return changed.length === 0 ? null : ((await listHosts(sql, id))[0] ?? null);
}

/** Where a host's agent listens; null when the host is unknown or has gone. */
export async function agentUrl(sql: Sql, hostId: string): Promise<string | null> {
  const [row] = await sql<
    { agent_url: string }[]
  >`select agent_url from hosts where id = ${hostId} and state <> 'gone'`;
  return row?.agent_url ?? null;
}
