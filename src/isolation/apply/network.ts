import { existsSync, readFileSync, writeFileSync } from "node:fs";
import {
  containerLink,
  gateway,
  type NetworkScope,
  type SlotNetwork,
  slotNetwork,
  slotOfVeth,
  subnet4,
  subnet6,
} from "../plan/network.ts";
import type { Conntrack } from "./conntrack.ts";
import type { Namespaces } from "./namespaces.ts";
import { NETLINK_ROUTE, NetlinkSocket } from "./netlink.ts";
import {
  addAddress,
  addNeighbour,
  addRoute,
  deleteLink,
  deleteRoute,
  ipv4Setting,
  newVeth,
  type Route,
  setIpv4,
  setUp,
  withoutLinkLocal,
} from "./rtnetlink.ts";

const LOOPBACK_INDEX = 1;

/**
 * The links of a host's containers: a routed veth pair for each, no bridge. Both ends know each other as permanent
 * neighbours and every address is a /32 or /128, so there is no shared layer 2 to forge anything on.
 */
export class HostNetwork {
  readonly #scope: NetworkScope;
  /** Two sockets: what answers at once, and what blocks for long. */
  readonly #quick = new NetlinkSocket(NETLINK_ROUTE);
  readonly #slow = new NetlinkSocket(NETLINK_ROUTE);
  readonly #conntrack: Conntrack;
  readonly #ipv6 = hasIpv6();

  /** Makes this host forward packets, and addresses of containers that don't exist unreachable. */
  constructor(scope: NetworkScope, conntrack: Conntrack) {
    this.#scope = scope;
    this.#conntrack = conntrack;
    forwardPackets(this.#ipv6);
    this.#quick.request(this.#unreachable().map(addRoute));
  }

  close(): void {
    this.#quick.close();
    this.#slow.close();
  }

  /** Names and addresses of a slot. */
  of(slot: number): SlotNetwork {
    return slotNetwork(this.#scope, slot);
  }

  /**
   * Connects a sandbox's network namespace: veth pair, addresses, neighbours, routes. 0.5 ms, synchronous. Nothing gets
   * through before the firewall admits the slot. EEXIST: the slot is attached already; detach it first.
   */
  attach(slot: number, namespaces: Pick<Namespaces, "net" | "netlink">): void {
    const { veth, index, ipv4, ipv6, hostMac, mac } = this.of(slot);
    const inside = containerLink.index;
    this.#quick.request([newVeth({ name: veth, index, mac: hostMac }, { ...containerLink, mac }, namespaces.net)]);
    this.#quick.request([
      setIpv4(index, [
        [ipv4Setting.forwarding, 1],
        [ipv4Setting.rpFilter, 1],
        [ipv4Setting.acceptRedirects, 0],
        // No ARP answer for any address: the container knows the only neighbour that it has.
        [ipv4Setting.arpIgnore, 8],
        // Lets clients on the host's loopback reach published ports; the firewall drops the other direction.
        [ipv4Setting.routeLocalnet, 1],
      ]),
      ...(this.#ipv6 ? [withoutLinkLocal(index)] : []),
      setUp(index),
      addNeighbour(index, ipv4, mac),
      addRoute({ family: 4, to: { address: ipv4, bits: 32 }, link: index }),
      ...(this.#ipv6
        ? [addNeighbour(index, ipv6, mac), addRoute({ family: 6, to: { address: ipv6, bits: 128 }, link: index })]
        : []),
    ]);
    // The socket belongs to the caller's namespaces; it is closed with them.
    new NetlinkSocket(NETLINK_ROUTE, namespaces.netlink).request([
      setUp(LOOPBACK_INDEX),
      ...(this.#ipv6 ? [withoutLinkLocal(inside)] : []),
      setUp(inside),
      addAddress(inside, ipv4),
      addNeighbour(inside, gateway.ipv4, hostMac),
      addRoute({ family: 4, to: null, link: inside, gateway: gateway.ipv4 }),
      ...(this.#ipv6
        ? [
            addAddress(inside, ipv6),
            addNeighbour(inside, gateway.ipv6, hostMac),
            addRoute({ family: 6, to: null, link: inside, gateway: gateway.ipv6 }),
          ]
        : []),
    ]);
  }

  /** For a sandbox without a network: only its loopback comes up. */
  attachLoopback(namespaces: Pick<Namespaces, "netlink">): void {
    new NetlinkSocket(NETLINK_ROUTE, namespaces.netlink).request([setUp(LOOPBACK_INDEX)]);
  }

  /**
   * Removes a slot's link, if it is there, and forgets the connections of its addresses: after this the addresses may be
   * given to another. Idempotent. Off the event loop, as the kernel takes 30 ms to remove a link.
   */
  async detach(slot: number): Promise<void> {
    const { veth, ipv4, ipv6 } = this.of(slot);
    await this.#slow.later([deleteLink(veth)]);
    await this.#conntrack.flush({ address: ipv4 }, { address: ipv6 });
  }

  /** The slots that have a link on this host, for the sweep. */
  slots(): number[] {
    return hostLinks().flatMap((name) => slotOfVeth(this.#scope, name) ?? []);
  }

  /** Removes every link and route of this instance. The host goes on forwarding: others may rely on it by now. */
  async down(): Promise<void> {
    await Promise.all(this.slots().map((slot) => this.detach(slot)));
    this.#quick.request(this.#unreachable().map(deleteRoute));
  }

  #unreachable(): Route[] {
    // Of the largest metric, so that it only catches what no container's own route takes.
    const metric = 0x7fffffff;
    const route4: Route = { family: 4, to: subnet4(this.#scope), metric };
    return this.#ipv6 ? [route4, { family: 6, to: subnet6(this.#scope), metric }] : [route4];
  }
}

/** Names of all links of this network namespace; /sys would show the namespace that it was mounted in. */
function hostLinks(): string[] {
  return readFileSync("/proc/net/dev", "utf8")
    .split("\n")
    .slice(2)
    .flatMap((line) => (line.includes(":") ? [line.slice(0, line.indexOf(":")).trim()] : []));
}

function hasIpv6(): boolean {
  const disabled = "/proc/sys/net/ipv6/conf/all/disable_ipv6";
  return existsSync(disabled) && readFileSync(disabled, "utf8").trim() === "0";
}

/** Turns forwarding on where it is off; a host that learns its IPv6 route from router advertisements keeps doing so. */
function forwardPackets(ipv6: boolean): void {
  setIfOther("/proc/sys/net/ipv4/ip_forward", "1");
  const all6 = "/proc/sys/net/ipv6/conf/all/forwarding";
  if (!ipv6 || readFileSync(all6, "utf8").trim() === "1") return;
  for (const link of hostLinks()) {
    const acceptRa = `/proc/sys/net/ipv6/conf/${link}/accept_ra`;
    // 1 means "unless forwarding", 2 "always".
    if (existsSync(acceptRa) && readFileSync(acceptRa, "utf8").trim() === "1") writeFileSync(acceptRa, "2");
  }
  writeFileSync(all6, "1");
}

function setIfOther(path: string, value: string): void {
  if (readFileSync(path, "utf8").trim() !== value) writeFileSync(path, value);
}
