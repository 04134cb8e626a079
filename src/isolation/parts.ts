import { existsSync, readFileSync } from "node:fs";
import { mkdir, writeFile } from "node:fs/promises";
import { BerthError } from "../core/errors.ts";
import { claimBlock } from "./apply/block.ts";
import { Cgroups } from "./apply/cgroup.ts";
import { Conntrack } from "./apply/conntrack.ts";
import { Disks } from "./apply/disk.ts";
import { Firewall } from "./apply/firewall.ts";
import { hostOpenFiles } from "./apply/host.ts";
import { Mounts } from "./apply/mounts.ts";
import { HostNetwork } from "./apply/network.ts";
import { Nft } from "./apply/nft.ts";
import { Ports } from "./apply/ports.ts";
import { findProgram, findRuntime, type Runtime, type RuntimeName } from "./apply/runtime.ts";
import { SeccompFilters } from "./apply/seccomp.ts";
import { armFailpoint, type ReachFailpoint } from "./failpoint.ts";
import { nameservers, usedResolvConf } from "./plan/files.ts";
import { idBase, type Layout, layout, type SlotLayout, slotLayout } from "./plan/layout.ts";
import type { NetworkScope } from "./plan/network.ts";

/** The settings that this module needs; config.ts has them. */
export interface SandboxConfig {
  instance: string;
  runDir: string;
  dataDir: string;
  runtime: RuntimeName | null;
  /** CIDR blocks of private networks that containers may reach; absent: none. */
  egressAllow?: readonly string[];
  /** A name of failpoint.ts: for tests. */
  failpoint?: string | null;
}

/** What a worker drives containers with, one of each. */
export interface Parts {
  layout: Layout;
  scope: NetworkScope;
  runtime: Runtime;
  conmon: string;
  seccomp: SeccompFilters;
  cgroups: Cgroups;
  mounts: Mounts;
  disks: Disks;
  nft: Nft;
  conntrack: Conntrack;
  firewall: Firewall;
  network: HostNetwork;
  ports: Ports;
  hostOpenFiles: number;
  /** The host's own. */
  resolvConf: string;
  reach: ReachFailpoint;
  slot: (slot: number) => SlotLayout;
  idBase: (slot: number) => number;
}

/** The host's own, and what systemd-resolved asks when that names only its listener on loopback. */
const resolvConfFiles = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/** Opens them; what earlier workers left in the kernel is taken over. */
export async function openParts(config: SandboxConfig): Promise<Parts> {
  const all = layout(config);
  const block = claimBlock(config.dataDir);
  const runtime = await findRuntime(config.runtime, all.runtimeRoot);
  const conmon = findProgram("conmon");
  if (conmon === null) throw new BerthError("unavailable", "conmon was not found; install it.");
  await makeMountTargets(all.mountTargets);
  const scope: NetworkScope = { instance: config.instance, block };
  const nft = new Nft();
  const conntrack = new Conntrack();
  const resolvConf = usedResolvConf(
    resolvConfFiles.filter((path) => existsSync(path)).map((path) => readFileSync(path, "utf8")),
  );
  const allowed = config.egressAllow ?? [];
  const firewall = new Firewall(nft, scope, { resolvers: nameservers(resolvConf), allowed });
  const network = new HostNetwork(scope, conntrack);
  return {
    layout: all,
    scope,
    runtime,
    conmon,
    seccomp: new SeccompFilters(),
    cgroups: new Cgroups(),
    mounts: new Mounts(all.layers),
    disks: new Disks(all.disks),
    nft,
    conntrack,
    firewall,
    network,
    ports: new Ports(firewall, conntrack, (slot) => network.of(slot)),
    hostOpenFiles: hostOpenFiles(),
    resolvConf,
    reach: armFailpoint(config.failpoint ?? null),
    slot: (slot) => slotLayout(all, slot),
    idBase: (slot) => idBase(block, slot),
  };
}

/** Lets go of sockets and libraries; nothing in the kernel changes. */
export async function closeParts(parts: Parts): Promise<void> {
  await parts.ports.close();
  parts.network.close();
  parts.conntrack.close();
  parts.nft.close();
}

/**
 * The lowest layer of every root filesystem: what the runtime mounts over, for images that lack it. The runtime would
 * make it in the writable layer instead, which takes longer and would end up in the layers of builds.
 */
async function makeMountTargets(path: string): Promise<void> {
  for (const name of ["dev", "etc", "proc", "sys"]) await mkdir(`${path}/${name}`, { recursive: true, mode: 0o755 });
  for (const name of ["hosts", "hostname", "resolv.conf"]) await writeFile(`${path}/etc/${name}`, "");
}
