import { readFileSync } from "node:fs";
import { statfs } from "node:fs/promises";
import type { Resources } from "../core/container.ts";
import type { Parts } from "./parts.ts";
import { cgroupUsage, type Usage } from "./plan/usage.ts";

/** What a slot's running container uses. `limits`: what it may. */
export async function usageOf(
  parts: Parts,
  slot: number,
  cgroup: string,
  network: "project" | "none",
  limits: Resources,
): Promise<Usage> {
  const { cgroups } = parts;
  const used = cgroupUsage(cgroups.version, (controller, file) => cgroups.read(cgroup, controller, file) ?? "");
  const disk = await statfs(parts.slot(slot).disk.mount);
  return {
    at: new Date().toISOString(),
    cpu: used.cpu,
    memory: { ...used.memory, limitBytes: limits.memory },
    processes: { ...used.processes, limit: limits.pids },
    network: network === "none" ? null : traffic(parts.network.of(slot).veth),
    disk: { usedBytes: (disk.blocks - disk.bfree) * disk.bsize, limitBytes: limits.disk },
  };
}

/** The host's end of the link receives what the container sends. */
function traffic(link: string): NonNullable<Usage["network"]> {
  const counter = (name: string): number => Number(readFileSync(`/sys/class/net/${link}/statistics/${name}`, "utf8"));
  return {
    receivedBytes: counter("tx_bytes"),
    receivedPackets: counter("tx_packets"),
    sentBytes: counter("rx_bytes"),
    sentPackets: counter("rx_packets"),
  };
}
