import { readFileSync } from "node:fs";
import {
  attribute,
  attribute32,
  attributesOf,
  NETLINK_NETFILTER,
  type NetlinkRequest,
  NetlinkSocket,
  nested,
} from "./netlink.ts";
import { addressBytes } from "./rtnetlink.ts";

/**
 * Forgetting connections. A connection that the kernel tracks outlives the element that let it begin: after a port is
 * taken away, or before an address goes to another container, what is tracked must go, or strangers' packets arrive.
 */

/** Connections from or to a container's address, or those made to a host port (hostAddress null: on any address). */
export type ConnectionMatch =
  | { address: string }
  | { protocol: "tcp" | "udp"; hostPort: number; hostAddress: string | null };

// linux/netfilter/nfnetlink_conntrack.h
const CT_GET = (1 << 8) | 1;
const CT_DELETE = (1 << 8) | 2;
const CTA_TUPLE_ORIG = 1;
const CTA_TUPLE_REPLY = 2;
const CTA_ID = 12;
const CTA_ZONE = 18;
const CTA_FILTER = 25;
const filterFlag = { source: 1 << 0, protocol: 1 << 3, destinationPort: 1 << 5 };
const protocolNumber = { tcp: 6, udp: 17 } as const;
const families = { ipv4: 2, ipv6: 10 } as const;

/**
 * Every listing walks the kernel's whole hash table (3 ms at 262,144 buckets), whatever it is asked for. Up to this many
 * connections, one listing of all of them is cheaper than the filtered ones of every single match.
 */
const listAllUpTo = 2000;

export class Conntrack {
  readonly #netlink = new NetlinkSocket(NETLINK_NETFILTER);
  #waiting: ConnectionMatch[] = [];
  #next: Promise<void> | null = null;
  #running: Promise<void> = Promise.resolve();

  close(): void {
    this.#netlink.close();
  }

  /** Forgets all matching connections. What is asked for while an earlier flush runs is done in one go after it. */
  flush(...matches: ConnectionMatch[]): Promise<void> {
    this.#waiting.push(...matches);
    this.#next ??= this.#running
      .catch(() => undefined)
      .then(() => {
        const taken = this.#waiting;
        this.#waiting = [];
        this.#next = null;
        this.#running = this.#flush(taken);
        return this.#running;
      });
    return this.#next;
  }

  async #flush(matches: readonly ConnectionMatch[]): Promise<void> {
    const count = Number(readFileSync("/proc/sys/net/netfilter/nf_conntrack_count", "utf8"));
    if (count === 0) return;
    const tests = matches.map(testOf);
    const listings = count <= listAllUpTo ? [listing(0)] : matches.flatMap(filteredListings);
    const deletions: NetlinkRequest[] = [];
    for (const request of listings) {
      for (const body of await this.#netlink.dump(request)) {
        const attributes = attributesOf(body, 4);
        if (tests.some((test) => test(attributes))) deletions.push(deletionOf(body, attributes));
      }
    }
    // The answers to one send must fit the socket's buffer (212,992 bytes).
    for (let at = 0; at < deletions.length; at += 200) await this.#netlink.later(deletions.slice(at, at + 200));
  }
}

interface Tuple {
  source: Buffer;
  destination: Buffer;
  protocol: number;
  destinationPort: number;
}

function tupleOf(attributes: Map<number, Buffer>, direction: number): Tuple {
  const nothing = Buffer.alloc(0);
  const tuple = attributesOf(attributes.get(direction) ?? nothing, 0);
  const ip = attributesOf(tuple.get(1) ?? nothing, 0);
  const proto = attributesOf(tuple.get(2) ?? nothing, 0);
  const port = proto.get(3);
  return {
    source: ip.get(1) ?? ip.get(3) ?? nothing,
    destination: ip.get(2) ?? ip.get(4) ?? nothing,
    protocol: proto.get(1)?.[0] ?? 0,
    destinationPort: port?.length === 2 ? port.readUInt16BE() : 0,
  };
}

/** Whether a listed connection matches, by its attributes. */
function testOf(match: ConnectionMatch): (attributes: Map<number, Buffer>) => boolean {
  if ("address" in match) {
    const bytes = addressBytes(match.address);
    // Who opened a connection is the original's source; who answers it, also behind a published port, the reply's.
    return (attributes) =>
      tupleOf(attributes, CTA_TUPLE_ORIG).source.equals(bytes) ||
      tupleOf(attributes, CTA_TUPLE_REPLY).source.equals(bytes);
  }
  const to = match.hostAddress === null ? null : addressBytes(match.hostAddress);
  return (attributes) => {
    const { protocol, destination, destinationPort } = tupleOf(attributes, CTA_TUPLE_ORIG);
    return (
      protocol === protocolNumber[match.protocol] &&
      destinationPort === match.hostPort &&
      (to === null || destination.equals(to))
    );
  };
}

function listing(family: number, ...attributes: readonly Buffer[]): NetlinkRequest {
  const body = Buffer.concat([Buffer.from([family, 0, 0, 0]), ...attributes]);
  return { type: CT_GET, flags: 0, body, about: "list connections" };
}

/** Listings that the kernel narrows down (since 5.8). */
function filteredListings(match: ConnectionMatch): NetlinkRequest[] {
  if ("address" in match) {
    const bytes = addressBytes(match.address);
    const v6 = bytes.length === 16;
    const tuple = nested(1, attribute(v6 ? 3 : 1, bytes));
    const family = v6 ? families.ipv6 : families.ipv4;
    return [
      listing(family, nested(CTA_TUPLE_ORIG, tuple), filter(filterFlag.source, 0)),
      listing(family, nested(CTA_TUPLE_REPLY, tuple), filter(0, filterFlag.source)),
    ];
  }
  const port = Buffer.from([match.hostPort >> 8, match.hostPort & 255]);
  const tuple = nested(2, attribute(1, Buffer.from([protocolNumber[match.protocol]])), attribute(3, port));
  const counting = filter(filterFlag.protocol | filterFlag.destinationPort, 0);
  return Object.values(families).map((family) => listing(family, nested(CTA_TUPLE_ORIG, tuple), counting));
}

/** Which parts of the original's and of the reply's tuple count. */
function filter(original: number, reply: number): Buffer {
  return nested(CTA_FILTER, attribute32(1, original), attribute32(2, reply));
}

/** Kernels before 6.11 can't delete by a filter: each connection is named, by its tuple, zone and id. */
function deletionOf(body: Buffer, attributes: Map<number, Buffer>): NetlinkRequest {
  const parts = [CTA_TUPLE_ORIG, CTA_ZONE, CTA_ID].flatMap((type) => {
    const value = attributes.get(type);
    if (value === undefined) return [];
    return [type === CTA_TUPLE_ORIG ? nested(type, value) : attribute(type, value)];
  });
  return {
    type: CT_DELETE,
    flags: 0,
    body: Buffer.concat([body.subarray(0, 4), ...parts]),
    about: "forget a connection",
    allow: ["ENOENT"],
  };
}
