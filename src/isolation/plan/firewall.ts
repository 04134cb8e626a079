import { gateway, hairpinSource6, type NetworkScope, slotNetwork, tableName, vethPrefix } from "./network.ts";

/**
 * The instance's nftables table: fixed chains, and sets whose elements are all the state there is. Adding a container or
 * a port adds elements, never rules, so the cost stays the same at any number (0.3 ms; docs/network.md).
 */

/** One field of an element: a host link's name, an address, a group's mark, a protocol or a port. */
export type Field =
  | { link: string }
  | { address: string }
  | { mark: number }
  | { protocol: "tcp" | "udp" }
  | { port: number };

/** An element of a set, or with `value` of a map. */
export interface Element {
  set: SetName;
  key: readonly Field[];
  value?: readonly Field[];
  comment?: string;
}

/** What comes and goes with containers and ports. Each key and value is as many fields as its declaration has. */
const sets = {
  // The addresses that a link may send from: forged sources are dropped before anything looks at them.
  source4: "typeof iifname . ip saddr",
  source6: "typeof iifname . ip6 saddr",
  // Which group a link belongs to, and which addresses a group has.
  group: "typeof iifname : meta mark",
  member4: "typeof meta mark . ip daddr",
  member6: "typeof meta mark . ip6 daddr",
  // Links that may reach the outside.
  egress: "typeof iifname",
  // A link with itself: a container that reaches itself through its own published port.
  self: "typeof iifname . oifname",
  // Published ports on all of the host's addresses, and on one of them.
  port4: "typeof meta l4proto . th dport : ip daddr . th dport",
  port6: "typeof meta l4proto . th dport : ip6 daddr . th dport",
  port4_at: "typeof ip daddr . meta l4proto . th dport : ip daddr . th dport",
  port6_at: "typeof ip6 daddr . meta l4proto . th dport : ip6 daddr . th dport",
} as const;
export type SetName = keyof typeof sets;

/** What changes only when the table is made again. */
const fixedSets = {
  // The host's name servers: the only private addresses that containers reach, and only port 53.
  resolver4: "typeof ip daddr",
  resolver6: "typeof ip6 daddr",
  // Private networks that the operator lets containers reach.
  allowed4: "typeof ip daddr; flags interval; auto-merge",
  allowed6: "typeof ip6 daddr; flags interval; auto-merge",
} as const;

/** Where containers never go by themselves: this host, private, shared (CGNAT), link-local and special addresses. */
const closed4 = [
  "0.0.0.0/8",
  "10.0.0.0/8",
  "100.64.0.0/10",
  "127.0.0.0/8",
  "169.254.0.0/16",
  "172.16.0.0/12",
  "192.0.0.0/24",
  "192.168.0.0/16",
  "198.18.0.0/15",
  "224.0.0.0/3",
];
/** As above: loopback, mapped and translated IPv4, unique local, link-local, multicast. */
const closed6 = [
  "::/96",
  "::ffff:0:0/96",
  "64:ff9b::/96",
  "64:ff9b:1::/48",
  "2002::/16",
  "fc00::/7",
  "fe80::/9",
  "ff00::/8",
];

/** The protections, by name, so that a test can show what happens without one. */
export const protections = ["source", "loopback", "host", "members", "closed", "inward", "flood"] as const;
export type Protection = (typeof protections)[number];

/** Connections that one container may have opened at a time: the host's table of them (262,144) is everybody's. */
export const maxOpened = 8192;

/**
 * The whole table without elements, as text for one nft transaction that replaces what there was.
 * Order of the hooks: `guard` (raw) before connection tracking, `published` (dstnat), `forward` or `input`, `leaving`.
 */
export function tableText(scope: NetworkScope, without: readonly Protection[] = []): string {
  const table = `inet ${tableName(scope)}`;
  const own = `"${vethPrefix(scope)}*"`;
  const unless = (protection: Protection, rules: string): string => (without.includes(protection) ? "" : rules);
  const refuse = "reject with icmpx admin-prohibited";
  const declarations = Object.entries({ ...sets, ...fixedSets }).map(([name, type]) =>
    type.includes(" : ") ? `map ${name} { ${type}; }` : `set ${name} { ${type}; }`,
  );
  return `
add table ${table}
delete table ${table}
table ${table} {
${declarations.join("\n")}
set opened { typeof iifname; flags dynamic; size 4096; }
set closed4 { type ipv4_addr; flags interval; elements = { ${closed4.join(", ")} }; }
set closed6 { type ipv6_addr; flags interval; elements = { ${closed6.join(", ")} }; }

chain guard {
  type filter hook prerouting priority raw; policy accept;
  iifname ${own} goto from_container
}
chain from_container {
  ${unless("loopback", "ip daddr 127.0.0.0/8 drop")}
  ${unless("source", "iifname . ip saddr @source4 accept\niifname . ip6 saddr @source6 accept\ndrop")}
}

chain incoming {
  type nat hook prerouting priority dstnat; policy accept;
  fib daddr type local goto published
}
chain local {
  type nat hook output priority -100; policy accept;
  fib daddr type local goto published
}
chain published {
  ip6 daddr ::1 return
  dnat ip to ip daddr . meta l4proto . th dport map @port4_at
  dnat ip to meta l4proto . th dport map @port4
  dnat ip6 to ip6 daddr . meta l4proto . th dport map @port6_at
  dnat ip6 to meta l4proto . th dport map @port6
}

chain leaving {
  type nat hook postrouting priority srcnat; policy accept;
  oifname ${own} ip saddr 127.0.0.0/8 snat ip to ${gateway.ipv4}
  iifname . oifname @self meta nfproto ipv4 snat ip to ${gateway.ipv4}
  iifname . oifname @self meta nfproto ipv6 snat ip6 to ${hairpinSource6(scope)}
  iifname ${own} oifname != ${own} masquerade
}

chain input {
  type filter hook input priority filter; policy accept;
  iifname ${own} goto to_host
}
chain to_host {
  ct state established,related accept
  ${unless("host", refuse)}
}

chain forward {
  type filter hook forward priority filter; policy accept;
  ${unless("flood", `iifname ${own} ct state new add @opened { iifname ct count over ${maxOpened} } drop`)}
  iifname ${own} oifname ${own} goto between
  iifname ${own} tcp flags syn tcp option maxseg size set rt mtu
  iifname ${own} goto outward
  oifname ${own} goto inward
}
chain between {
  ct status dnat accept
  meta mark set 0
  meta mark set iifname map @group
  meta mark . ip daddr @member4 accept
  meta mark . ip6 daddr @member6 accept
  ${unless("members", refuse)}
}
chain outward {
  ct state established,related accept
  ip daddr @resolver4 meta l4proto { tcp, udp } th dport 53 accept
  ip6 daddr @resolver6 meta l4proto { tcp, udp } th dport 53 accept
  iifname @egress ip daddr @allowed4 accept
  iifname @egress ip6 daddr @allowed6 accept
  ${unless("closed", `ip daddr @closed4 ${refuse}\nip6 daddr @closed6 ${refuse}`)}
  iifname @egress accept
  ${refuse}
}
chain inward {
  ct state established,related accept
  ct status dnat accept
  ${unless("inward", refuse)}
}
}
`;
}

/** The elements of one container. `group` is its isolation group's number, from 1 on; `project` is kept with it. */
export function containerElements(
  scope: NetworkScope,
  slot: number,
  membership: { group: number; project: string; egress: boolean },
): Element[] {
  const { veth, ipv4, ipv6 } = slotNetwork(scope, slot);
  const { group, project, egress } = membership;
  const link = { link: veth };
  const mark = { mark: group };
  return [
    { set: "source4", key: [link, { address: ipv4 }] },
    { set: "source6", key: [link, { address: ipv6 }] },
    { set: "group", key: [link], value: [mark], comment: project },
    { set: "member4", key: [mark, { address: ipv4 }] },
    { set: "member6", key: [mark, { address: ipv6 }] },
    { set: "self", key: [link, link] },
    ...(egress ? [{ set: "egress", key: [link] } as const] : []),
  ];
}

/** A host port: on all of the host's addresses (null) or on one. */
export interface HostPort {
  hostAddress: string | null;
  protocol: "tcp" | "udp";
  hostPort: number;
}

/** The elements that lead a host port to a container's port; over IPv6 too, when the port is on all addresses. */
export function portElements(
  scope: NetworkScope,
  port: HostPort,
  target: { slot: number; containerPort: number },
): Element[] {
  const { ipv4, ipv6 } = slotNetwork(scope, target.slot);
  const to = (address: string): Field[] => [{ address }, { port: target.containerPort }];
  const key: Field[] = [{ protocol: port.protocol }, { port: port.hostPort }];
  if (port.hostAddress === null) {
    return [
      { set: "port4", key, value: to(ipv4) },
      { set: "port6", key, value: to(ipv6) },
    ];
  }
  const at = [{ address: port.hostAddress }, ...key];
  return port.hostAddress.includes(":")
    ? [{ set: "port6_at", key: at, value: to(ipv6) }]
    : [{ set: "port4_at", key: at, value: to(ipv4) }];
}

/**
 * nft commands that fill the sets which change only with the table.
 * `resolvers`: addresses of name servers; `allowed`: CIDR blocks and addresses.
 */
export function fixedCommands(scope: NetworkScope, resolvers: readonly string[], allowed: readonly string[]): string[] {
  const add = (set: string, address: string): string =>
    addCommand(scope, `${set}${address.includes(":") ? "6" : "4"}`, address);
  return [...resolvers.map((address) => add("resolver", address)), ...allowed.map((block) => add("allowed", block))];
}

/** An nft command for one element, for when the table is made again; a change sends bytes (apply/nft-elements.ts). */
export function elementCommand(scope: NetworkScope, element: Element): string {
  const text = (fields: readonly Field[]): string => fields.map((field) => Object.values(field).join()).join(" . ");
  const value = element.value === undefined ? "" : ` : ${text(element.value)}`;
  const comment = element.comment === undefined ? "" : ` comment "${element.comment}"`;
  return addCommand(scope, element.set, `${text(element.key)}${comment}${value}`);
}

function addCommand(scope: NetworkScope, set: string, element: string): string {
  return `add element inet ${tableName(scope)} ${set} { ${element} }`;
}
