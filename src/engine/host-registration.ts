import { readFile, statfs } from "node:fs/promises";
import type { Address, Config } from "../config.ts";
import { diskReserve, type HostRegistration } from "../core/host.ts";

/** Where a worker's agent listens. */
export type AgentListen = { socket: string } | Address;

/** The port of agents that listen for other machines, unless told. */
const agentPort = 7072;

/** On the API's machine a Unix socket; a host that has joined listens on all its addresses. */
export function agentListen(config: Config, joined: boolean): AgentListen {
  if (config.agentListen !== null) return config.agentListen;
  return joined ? { host: "0.0.0.0", port: agentPort } : { socket: `${config.runDir}/agent.sock` };
}

/** What this machine is as a host. */
export async function hostRegistration(config: Config, agent: AgentListen): Promise<HostRegistration> {
  const { bsize, blocks, bavail } = await statfs(config.dataDir);
  return {
    name: config.hostName,
    address: config.hostAddress,
    agentUrl: "socket" in agent ? `unix:${agent.socket}` : `tls://${reachable(agent, config)}`,
    bootId: (await readFile("/proc/sys/kernel/random/boot_id", "utf8")).trim(),
    cpus: config.host.cpus,
    memory: config.host.memory,
    disk: bsize * bavail,
    diskFree: bsize * bavail,
    diskReserve: diskReserve(bsize * blocks),
    portFirst: config.portRange.first,
    portLast: config.portRange.last,
    reservedPorts: "socket" in agent ? [config.listen.port] : [config.listen.port, agent.port],
    labels: { ...config.hostLabels },
  };
}

/** An agent that listens on all addresses is reached where the host's ports are. */
function reachable(agent: Address, config: Config): string {
  return `${agent.host === "0.0.0.0" ? config.hostAddress : agent.host}:${String(agent.port)}`;
}
