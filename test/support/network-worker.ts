/**
 * The network half of a worker, in a process of its own, so that a test can run it in a network namespace that stands
 * for a host, kill it, and start another. It takes calls as JSON lines and answers each with one.
 */
import { createInterface } from "node:readline";
import type { PortMapping } from "../../src/core/port.ts";
import { Conntrack } from "../../src/isolation/apply/conntrack.ts";
import { Firewall } from "../../src/isolation/apply/firewall.ts";
import { closeNamespaces, createNamespaces, type Namespaces } from "../../src/isolation/apply/namespaces.ts";
import { HostNetwork } from "../../src/isolation/apply/network.ts";
import { Nft } from "../../src/isolation/apply/nft.ts";
import { Ports } from "../../src/isolation/apply/ports.ts";
import type { Element, Protection } from "../../src/isolation/plan/firewall.ts";
import { type NetworkScope, tableName } from "../../src/isolation/plan/network.ts";

interface Start {
  scope: NetworkScope;
  without: Protection[];
  resolvers: string[];
  allowed: string[];
}

const { scope, without, resolvers, allowed } = JSON.parse(process.argv[2] ?? "{}") as Start;
const conntrack = new Conntrack();
const network = new HostNetwork(scope, conntrack);
const nft = new Nft();
const open = (protections: Protection[]): Firewall =>
  new Firewall(nft, scope, { without: protections, resolvers, allowed });
let firewall = open(without);
const ports = new Ports(firewall, conntrack, (slot) => network.of(slot));
const sandboxes = new Map<number, Namespaces>();

const calls = {
  /** Namespaces and links of a slot; returns the descriptor of the network namespace. */
  create: (slot: number) => {
    const namespaces = createNamespaces(700_000_000 + slot * 65_536);
    sandboxes.set(slot, namespaces);
    network.attach(slot, namespaces);
    return namespaces.net;
  },
  admit: (slot: number, project: string, egress = true) => firewall.admit(slot, { project, egress }),
  expel: (slot: number) => firewall.expel(slot),
  detach: (slot: number) => network.detach(slot),
  close: (slot: number) => {
    const namespaces = sandboxes.get(slot);
    if (namespaces !== undefined) closeNamespaces(namespaces);
    sandboxes.delete(slot);
  },
  publish: (mapping: PortMapping, slot: number) => ports.publish(mapping, slot),
  unpublish: (mapping: PortMapping) => ports.unpublish(mapping),
  /** Takes protections away, as a test does to see that what was refused would otherwise come through. */
  weaken: (protections: Protection[]) => {
    firewall = open(protections);
  },
  generation: () => nft.generation(),
  change: (generation: number, remove: Element[], add: Element[]) =>
    nft.change(generation, tableName(scope), remove, add),
  reconcile: () => firewall.reconcile(),
  state: () => ({ links: network.slots(), slots: firewall.slots(), ports: firewall.ports() }),
  down: async () => {
    firewall.drop();
    await network.down();
  },
} as unknown as Record<string, (...args: unknown[]) => unknown>;

process.stdout.write("ready\n");
for await (const line of createInterface({ input: process.stdin })) {
  const { call, args } = JSON.parse(line) as { call: string; args: unknown[] };
  let answer: object;
  try {
    answer = { value: (await calls[call]?.(...args)) ?? null };
  } catch (error) {
    const { message, code } = error as Error & { code?: string };
    answer = { error: { message, code } };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
process.exit(0);
