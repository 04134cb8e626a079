import { createSocket, type Socket as DatagramSocket } from "node:dgram";
import { once } from "node:events";
import { connect, createServer, type Server, type Socket } from "node:net";
import { BerthError } from "../../core/errors.ts";
import type { PortMapping } from "../../core/port.ts";
import type { HostPort } from "../plan/firewall.ts";
import type { SlotNetwork } from "../plan/network.ts";
import type { Conntrack } from "./conntrack.ts";
import { hasCode } from "./ffi.ts";
import type { Firewall } from "./firewall.ts";
import { portHolder } from "./port-holder.ts";

/**
 * Published ports. The kernel leads packets to the container (firewall.ts); the worker holds a socket on each port too.
 * It is the conflict check and the reservation: no process of the host can have the port as well. What arrives at it is
 * only what the kernel has no path for, connections to ::1, and those are spliced.
 */
export class Ports {
  readonly #firewall: Firewall;
  readonly #conntrack: Conntrack;
  readonly #of: (slot: number) => SlotNetwork;
  readonly #held = new Map<string, Holder>();

  constructor(firewall: Firewall, conntrack: Conntrack, of: (slot: number) => SlotNetwork) {
    this.#firewall = firewall;
    this.#conntrack = conntrack;
    this.#of = of;
  }

  /**
   * Publishes a container's port. Idempotent, and after a worker's restart takes over the port that the kernel still
   * serves. Calls for one host port must not overlap (one driver per container, unique rows per port).
   * @throws BerthError `host_port_in_use`, naming the process if it can be found.
   */
  async publish(mapping: PortMapping, slot: number): Promise<void> {
    const { ipv4 } = this.#of(slot);
    const key = keyOf(mapping);
    const held = this.#held.get(key);
    if (held === undefined) this.#held.set(key, await hold(mapping, { address: ipv4, port: mapping.containerPort }));
    else held.target = { address: ipv4, port: mapping.containerPort };
    this.#firewall.setPort(hostPortOf(mapping), { slot, containerPort: mapping.containerPort });
    // A UDP flow that was seen before has its mapping fixed, and would go on ignoring the new one.
    if (mapping.protocol === "udp") await this.#conntrack.flush(hostPortOf(mapping));
  }

  /** Takes a port away and cuts its connections. Idempotent. */
  async unpublish(mapping: HostPort): Promise<void> {
    const port = hostPortOf(mapping);
    this.#firewall.clearPort(port);
    await this.#conntrack.flush(port);
    const held = this.#held.get(keyOf(port));
    this.#held.delete(keyOf(port));
    await held?.release();
  }

  /** Lets go of all sockets; the kernel goes on serving the ports. */
  async close(): Promise<void> {
    const all = [...this.#held.values()];
    this.#held.clear();
    await Promise.all(all.map((holder) => holder.release()));
  }
}

interface Target {
  address: string;
  port: number;
}

/** A socket that the worker holds on a host port. */
interface Holder {
  target: Target;
  release: () => Promise<void>;
}

function hostPortOf(mapping: HostPort): HostPort {
  return { hostAddress: mapping.hostAddress, protocol: mapping.protocol, hostPort: mapping.hostPort };
}

function keyOf(port: HostPort): string {
  return `${port.hostAddress ?? "*"} ${port.protocol} ${port.hostPort}`;
}

/** Opens the socket: on the mapping's address, or on all of IPv6 and IPv4, or (without IPv6) on all of IPv4. */
async function hold(mapping: PortMapping, target: Target): Promise<Holder> {
  const open = mapping.protocol === "tcp" ? holdTcp : holdUdp;
  const { hostAddress, hostPort } = mapping;
  try {
    if (hostAddress !== null) return await open(hostAddress, hostPort, target);
    try {
      return await open("::", hostPort, target);
    } catch (error) {
      if (!hasCode(error, "EAFNOSUPPORT", "EADDRNOTAVAIL")) throw error;
      return await open("0.0.0.0", hostPort, target);
    }
  } catch (error) {
    if (hasCode(error, "EADDRNOTAVAIL")) {
      throw new BerthError("invalid_request", `This host has no address ${String(hostAddress)}.`, { cause: error });
    }
    if (!hasCode(error, "EADDRINUSE")) throw error;
    const holder = await portHolder(mapping.protocol, hostPort);
    throw new BerthError(
      "host_port_in_use",
      `Host port ${hostPort}/${mapping.protocol} is used by ${holder ?? "another process of the host"}.`,
      { facts: { hostPort }, cause: error },
    );
  }
}

async function holdTcp(host: string, port: number, target: Target): Promise<Holder> {
  const open = new Set<Socket>();
  const server: Server = createServer({ allowHalfOpen: true, pauseOnConnect: true });
  const holder: Holder = {
    target,
    release: async () => {
      for (const socket of open) socket.destroy();
      server.close();
      await once(server, "close");
    },
  };
  server.maxConnections = 1024;
  server.on("connection", (client) => {
    const upstream = connect({ host: holder.target.address, port: holder.target.port, allowHalfOpen: true });
    for (const [from, to] of [
      [client, upstream],
      [upstream, client],
    ] as const) {
      open.add(from);
      from.on("error", () => to.destroy());
      from.on("close", () => {
        open.delete(from);
        to.destroySoon();
      });
      from.pipe(to);
    }
  });
  server.listen({ host, port, exclusive: true });
  await once(server, "listening");
  // A connection that can't be accepted (no descriptors left) is the client's loss, not the worker's.
  server.on("error", () => undefined);
  // A published port alone keeps no worker running.
  server.unref();
  return holder;
}

async function holdUdp(host: string, port: number, target: Target): Promise<Holder> {
  const socket: DatagramSocket = createSocket({ type: host.includes(":") ? "udp6" : "udp4", reuseAddr: false });
  socket.bind({ address: host, port, exclusive: true });
  await once(socket, "listening");
  socket.on("error", () => undefined);
  socket.unref();
  return {
    target,
    release: async () => {
      socket.close();
      await once(socket, "close");
    },
  };
}
