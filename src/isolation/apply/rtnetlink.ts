import {
  attribute,
  attribute32,
  attributeText,
  type NetlinkRequest,
  NLM_F_CREATE,
  NLM_F_EXCL,
  NLM_F_REPLACE,
  nested,
} from "./netlink.ts";

/** The rtnetlink(7) requests that a container's network takes; each is a value, sent by a NetlinkSocket. */

const RTM_NEWLINK = 16;
const RTM_DELLINK = 17;
const RTM_SETLINK = 19;
const RTM_NEWADDR = 20;
const RTM_NEWROUTE = 24;
const RTM_DELROUTE = 25;
const RTM_NEWNEIGH = 28;

const AF_INET = 2;
const AF_INET6 = 10;
const IFF_UP = 1;

/** Per-device IPv4 settings (linux/ip.h, IPV4_DEVCONF_*), as /proc/sys/net/ipv4/conf/<device>/ has them. */
export const ipv4Setting = {
  forwarding: 1,
  acceptRedirects: 4,
  rpFilter: 8,
  arpIgnore: 19,
  routeLocalnet: 26,
} as const;

/** Text of an IPv4 or IPv6 address → its 4 or 16 bytes. */
export function addressBytes(address: string): Buffer {
  if (!address.includes(":")) return Buffer.from(address.split(".").map(Number));
  const [head = "", tail] = address.split("::");
  const groups = (text: string): number[] =>
    text === "" ? [] : text.split(":").map((group) => Number.parseInt(group, 16));
  const before = groups(head);
  const after = groups(tail ?? "");
  const all = [...before, ...Array<number>(8 - before.length - after.length).fill(0), ...after];
  return Buffer.from(all.flatMap((group) => [group >> 8, group & 0xff]));
}

function macBytes(mac: string): Buffer {
  return Buffer.from(mac.replaceAll(":", ""), "hex");
}

const familyOf = (address: string): number => (address.includes(":") ? AF_INET6 : AF_INET);

/** struct ifinfomsg. */
function linkHeader(index: number, flags = 0): Buffer {
  const out = Buffer.alloc(16);
  out.writeInt32LE(index, 4);
  out.writeUInt32LE(flags, 8);
  out.writeUInt32LE(flags, 12);
  return out;
}

const IFLA_ADDRESS = 1;
const IFLA_IFNAME = 3;
const IFLA_LINKINFO = 18;
const IFLA_AF_SPEC = 26;
const IFLA_NET_NS_FD = 28;
const IFLA_NUM_TX_QUEUES = 31;
const IFLA_NUM_RX_QUEUES = 32;

/** One end of a veth pair. The index is chosen by us, so that all that follows can be sent along with the creation. */
export interface LinkEnd {
  name: string;
  index: number;
  mac: string;
}

/** A veth pair with one end here and the other in the namespace `peerNet`. EEXIST: the name or index is in use. */
export function newVeth(here: LinkEnd, peer: LinkEnd, peerNet: number): NetlinkRequest {
  // One queue each way: transmission on a veth takes no lock, and every queue costs sysfs entries at creation.
  const describe = (end: LinkEnd): Buffer[] => [
    linkHeader(end.index),
    attributeText(IFLA_IFNAME, end.name),
    attribute(IFLA_ADDRESS, macBytes(end.mac)),
    attribute32(IFLA_NUM_TX_QUEUES, 1),
    attribute32(IFLA_NUM_RX_QUEUES, 1),
  ];
  const peerInfo = nested(1 /* VETH_INFO_PEER */, ...describe(peer), attribute32(IFLA_NET_NS_FD, peerNet));
  const info = nested(IFLA_LINKINFO, attributeText(1 /* IFLA_INFO_KIND */, "veth"), nested(2 /* _DATA */, peerInfo));
  return {
    type: RTM_NEWLINK,
    flags: NLM_F_CREATE | NLM_F_EXCL,
    body: Buffer.concat([...describe(here), info]),
    about: `create link ${here.name}`,
  };
}

/** Removes a link by name, and with a veth its peer. The kernel waits for readers: 30 ms. */
export function deleteLink(name: string): NetlinkRequest {
  return {
    type: RTM_DELLINK,
    flags: 0,
    body: Buffer.concat([linkHeader(0), attributeText(IFLA_IFNAME, name)]),
    about: `delete link ${name}`,
    allow: ["ENODEV"],
  };
}

export function setUp(index: number): NetlinkRequest {
  return { type: RTM_SETLINK, flags: 0, body: linkHeader(index, IFF_UP), about: `set link ${index} up` };
}

/** Sets per-device IPv4 settings (numbers of `ipv4Setting`). */
export function setIpv4(index: number, settings: readonly (readonly [number, number])[]): NetlinkRequest {
  const values = nested(1 /* IFLA_INET_CONF */, ...settings.map(([key, value]) => attribute32(key, value)));
  return {
    type: RTM_SETLINK,
    flags: 0,
    body: Buffer.concat([linkHeader(index), nested(IFLA_AF_SPEC, nested(AF_INET, values))]),
    about: `configure IPv4 of link ${index}`,
  };
}

/** No link-local address by itself: it would only send router and listener messages that nobody answers. */
export function withoutLinkLocal(index: number): NetlinkRequest {
  const mode = attribute(8 /* IFLA_INET6_ADDR_GEN_MODE */, Buffer.from([1 /* none */]));
  return {
    type: RTM_SETLINK,
    flags: 0,
    body: Buffer.concat([linkHeader(index), nested(IFLA_AF_SPEC, nested(AF_INET6, mode))]),
    about: `configure IPv6 of link ${index}`,
  };
}

/** Gives a link an address that stands alone (/32, /128): no neighbour is on the link. */
export function addAddress(index: number, address: string): NetlinkRequest {
  const bytes = addressBytes(address);
  const header = Buffer.alloc(8);
  header[0] = familyOf(address);
  header[1] = bytes.length * 8;
  header.writeUInt32LE(index, 4);
  // NODAD: nobody else can have it, and it is usable at once.
  const flags = 0x2 | 0x200; /* IFA_F_NODAD | IFA_F_NOPREFIXROUTE */
  return {
    type: RTM_NEWADDR,
    flags: NLM_F_CREATE | NLM_F_REPLACE,
    body: Buffer.concat([header, attribute(2, bytes), attribute(1, bytes), attribute32(8, flags)]),
    about: `add address ${address}`,
  };
}

/** A permanent neighbour: neither ARP nor neighbour discovery can change where its packets go. */
export function addNeighbour(index: number, address: string, mac: string): NetlinkRequest {
  const header = Buffer.alloc(12);
  header[0] = familyOf(address);
  header.writeInt32LE(index, 4);
  header.writeUInt16LE(0x80 /* NUD_PERMANENT */, 8);
  return {
    type: RTM_NEWNEIGH,
    flags: NLM_F_CREATE | NLM_F_REPLACE,
    body: Buffer.concat([header, attribute(1, addressBytes(address)), attribute(2, macBytes(mac))]),
    about: `add neighbour ${address}`,
  };
}

/** Where packets to a block of addresses go: a link, a gateway on a link, or (neither) nowhere: "unreachable". */
export interface Route {
  /** An address with prefix length; null is the default route. */
  to: { address: string; bits: number } | null;
  family: 4 | 6;
  link?: number;
  gateway?: string;
  /** A lower one wins among routes to the same block. */
  metric?: number;
}

const RTA_DST = 1;
const RTA_OIF = 4;
const RTA_GATEWAY = 5;
const RTA_PRIORITY = 6;
const RTN_UNICAST = 1;
const RTN_UNREACHABLE = 7;
const RT_SCOPE_LINK = 253;
const RTNH_F_ONLINK = 4;
const RTPROT_STATIC = 4;

function routeBody(route: Route): Buffer {
  const header = Buffer.alloc(12);
  header[0] = route.family === 6 ? AF_INET6 : AF_INET;
  header[1] = route.to?.bits ?? 0;
  header[4] = 254; /* RT_TABLE_MAIN */
  header[5] = RTPROT_STATIC;
  header[6] = route.link !== undefined && route.gateway === undefined ? RT_SCOPE_LINK : 0;
  header[7] = route.link === undefined ? RTN_UNREACHABLE : RTN_UNICAST;
  header.writeUInt32LE(route.gateway === undefined ? 0 : RTNH_F_ONLINK, 8);
  const parts: Uint8Array[] = [header];
  if (route.to !== null) parts.push(attribute(RTA_DST, addressBytes(route.to.address)));
  if (route.link !== undefined) parts.push(attribute32(RTA_OIF, route.link));
  if (route.gateway !== undefined) parts.push(attribute(RTA_GATEWAY, addressBytes(route.gateway)));
  if (route.metric !== undefined) parts.push(attribute32(RTA_PRIORITY, route.metric));
  return Buffer.concat(parts);
}

const nameOf = (route: Route): string => (route.to === null ? "default" : `${route.to.address}/${route.to.bits}`);

export function addRoute(route: Route): NetlinkRequest {
  const flags = NLM_F_CREATE | NLM_F_REPLACE;
  return { type: RTM_NEWROUTE, flags, body: routeBody(route), about: `add route ${nameOf(route)}` };
}

export function deleteRoute(route: Route): NetlinkRequest {
  const allow = ["ESRCH", "ENETUNREACH"];
  return { type: RTM_DELROUTE, flags: 0, body: routeBody(route), about: `delete route ${nameOf(route)}`, allow };
}
