import { BerthError } from "../core/errors.ts";
import { newId } from "../core/ids.ts";
import type { Protocol, PublishRequest } from "../core/port.ts";
import { behind, type Page, type Paged, paged } from "./page.ts";
import type { Scope } from "./scope.ts";
import { type Fragment, read, type Sql, type Tx, time, violation } from "./scope.ts";

/** A published port with what its endpoint needs. hostAddress `0.0.0.0`: all of the host's. */
export interface PortRow {
  id: string;
  containerId: string;
  hostId: string;
  containerPort: number;
  hostPort: number;
  protocol: Protocol;
  hostAddress: string;
  /** The host's own address, where clients reach it. */
  publicAddress: string;
  status: "pending" | "active" | "removing";
  /** Whether the host has done what was last wanted of the container. */
  containerRunning: boolean;
  createdAt: string;
}

function view(sql: Sql, where: Fragment): Fragment {
  return sql`
    select p.id, p.container_id as "containerId", p.host_id as "hostId", p.container_port as "containerPort",
      p.host_port as "hostPort", p.protocol, host(p.host_address) as "hostAddress", h.address as "publicAddress", p.status,
      c.status = 'running' as "containerRunning", p.created_at as "createdAt"
    from ports p join hosts h on h.id = p.host_id join containers c on c.id = p.container_id where ${where}`;
}

const portRow = (raw: PortRow): PortRow => ({ ...raw, createdAt: time(raw.createdAt) });

export async function findPort(sql: Sql, scope: Scope, id: string): Promise<PortRow | null> {
  const rows = await read<PortRow>(sql, scope, view(sql, sql`p.project_id = ${scope.projectId} and p.id = ${id}`));
  return rows.map(portRow)[0] ?? null;
}

/** A page of the project's ports, newest first. */
export async function listPorts(
  sql: Sql,
  scope: Scope,
  filter: { containerId?: string | undefined; hostPort?: number | undefined },
  page: Page,
): Promise<Paged<PortRow>[]> {
  const after = behind(sql, page, sql`p.created_at`, sql`p.id`);
  const container = filter.containerId === undefined ? sql`` : sql`and p.container_id = ${filter.containerId}`;
  const port = filter.hostPort === undefined ? sql`` : sql`and p.host_port = ${filter.hostPort}`;
  const where = sql`p.project_id = ${scope.projectId} ${container} ${port} ${after}`;
  const rows = await read<PortRow>(
    sql,
    scope,
    sql`${view(sql, where)} order by p.created_at desc, p.id limit ${page.limit}`,
  );
  return paged(rows, portRow);
}

export interface NewPort {
  id: string;
  projectId: string;
  containerId: string;
  hostId: string;
  containerPort: number;
  /** null: the host's lowest free port of its range that is not reserved, and above `above`. */
  hostPort: number | null;
  above?: number;
  protocol: Protocol;
  /** null: all of the host's addresses. */
  hostAddress: string | null;
}

/** The row of a port that is asked for a container of a host. */
export function newPort(port: PublishRequest, of: { projectId: string; containerId: string; hostId: string }): NewPort {
  const { containerPort, hostPort, protocol, hostAddress } = port;
  return {
    id: newId("port"),
    ...of,
    containerPort,
    hostPort: hostPort ?? null,
    protocol,
    hostAddress: hostAddress === undefined || hostAddress === "0.0.0.0" ? null : hostAddress,
  };
}

/** The host can't give the port: `taken`, or of an automatic one that none of its range is left. */
export class PortRefused extends Error {
  readonly port: NewPort;
  constructor(port: NewPort, cause: unknown) {
    super("the host can't give the port", { cause });
    this.port = port;
  }
}

/**
 * Adds a port. The caller holds the host's lock, so that automatic ports don't collide.
 * @throws PortRefused
 */
export async function insertPort(tx: Tx, port: NewPort): Promise<void> {
  try {
    await tx`
      insert into ports (id, project_id, container_id, host_id, container_port, host_port, protocol, host_address)
      select ${port.id}, ${port.projectId}, ${port.containerId}, h.id, ${port.containerPort},
        coalesce(${port.hostPort}::int, berth_free_port(h.id, ${port.protocol}, greatest(h.port_first, ${(port.above ?? 0) + 1}::int), h.port_last)),
        ${port.protocol}, coalesce(${port.hostAddress}::inet, '0.0.0.0/0')
      from hosts h where h.id = ${port.hostId}`;
  } catch (error) {
    // Of a null port the column is named, not a constraint.
    throw violation(error) === "port_taken" || violation(error) === "host_port" ? new PortRefused(port, error) : error;
  }
}

/** Asks the host to take the port away; the row goes when that is done. Null when the project has no such port. */
export async function removePort(
  tx: Tx,
  projectId: string,
  id: string,
): Promise<{ containerId: string; hostId: string } | null> {
  const rows = await tx<{ containerId: string; hostId: string }[]>`
    update ports set status = 'removing' where project_id = ${projectId} and id = ${id}
    returning container_id as "containerId", host_id as "hostId"`;
  return rows[0] ?? null;
}

/** Makes the host look at the container again, because its ports changed. */
export async function touchContainer(tx: Tx, id: string): Promise<void> {
  await tx`update containers set wanted_rev = wanted_rev + 1 where id = ${id}`;
}

/** The client's error for a port that the host uses itself. */
export function portReserved(hostPort: number): BerthError {
  return new BerthError("port_taken", `Host port ${String(hostPort)} is reserved by the operator.`, {
    facts: { hostPort },
  });
}

/**
 * The client's error for a refused port: `port_taken`, naming its holder when that is the project's own, or
 * `ports_exhausted`.
 */
export async function portError(sql: Sql, scope: Scope, { port }: PortRefused): Promise<BerthError> {
  const { hostPort, protocol } = port;
  if (hostPort === null) {
    return new BerthError("ports_exhausted", "All ports of the host's range are taken; name one outside it.");
  }
  const holders = await read<{ name: string }>(
    sql,
    scope,
    sql`select c.name from ports p join containers c on c.id = p.container_id
      where p.project_id = ${scope.projectId} and p.host_id = ${port.hostId} and p.host_port = ${hostPort}
        and p.protocol = ${protocol} limit 1`,
  );
  const by = holders[0] === undefined ? "" : ` by the container ${holders[0].name}`;
  return new BerthError("port_taken", `Host port ${String(hostPort)}/${protocol} is taken${by}.`, {
    facts: { hostPort, protocol },
  });
}
