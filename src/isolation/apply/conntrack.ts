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
 * taken away, or an address goes to another container, what is tracked must go too, or strangers' packets arrive.
 */

// linux/netfilter/nfnetlink_conntrack.h
const CT_GET = (1 << 8) | 1;
const CT_DELETE = (1 << 8) | 2;
const CTA_TUPLE_ORIG = 1;
const CTA_TUPLE_REPLY = 2;
const CTA_ID = 12;
const CTA_ZONE = 18;
const CTA_FILTER = 25;
const CTA_TUPLE_IP = 1;
const CTA_TUPLE_PROTO = 2;
const filterFlag = { source: 1 << 0, destination: 1 << 1, protocol: 1 << 3, destinationPort: 1 << 5 };

const AF_INET = 2;
const AF_INET6 = 10;
const protocolNumber = { tcp: 6, udp: 17 } as const;

/** A filter on one direction's tuple: which attributes it has, and which of them count. */
interface TupleFilter {
  family: number;
  direction: "original" | "reply";
  tuple: readonly Uint8Array[];
  flags: number;
}

export class Conntrack {
  readonly #netlink = new NetlinkSocket(NETLINK_NETFILTER);

  close(): void {
    this.#netlink.close();
  }

  /** Forgets all connections from or to a container's address; returns how many there were. */
  async flushAddress(address: string): Promise<number> {
    const bytes = addressBytes(address);
    const v6 = bytes.length === 16;
    const source = nested(CTA_TUPLE_IP, attribute(v6 ? 3 : 1, bytes));
    const family = v6 ? AF_INET6 : AF_INET;
    // Who opened a connection is the original's source; who answers it, also behind a published port, the reply's.
    const opened = await this.#flush({ family, direction: "original", tuple: [source], flags: filterFlag.source });
    return opened + (await this.#flush({ family, direction: "reply", tuple: [source], flags: filterFlag.source }));
  }

  /** Forgets all connections that were made to a host port, on one of the host's addresses or (null) on any. */
  async flushPort(protocol: "tcp" | "udp", port: number, hostAddress: string | null): Promise<number> {
    const portBytes = Buffer.from([port >> 8, port & 255]);
    const proto = nested(
      CTA_TUPLE_PROTO,
      attribute(1, Buffer.from([protocolNumber[protocol]])),
      attribute(3, portBytes),
    );
    const flags = filterFlag.protocol | filterFlag.destinationPort;
    let flushed = 0;
    for (const family of [AF_INET, AF_INET6]) {
      if (hostAddress === null) {
        flushed += await this.#flush({ family, direction: "original", tuple: [proto], flags });
      } else if (hostAddress.includes(":") === (family === AF_INET6)) {
        const to = nested(CTA_TUPLE_IP, attribute(family === AF_INET6 ? 4 : 2, addressBytes(hostAddress)));
        const all = flags | filterFlag.destination;
        flushed += await this.#flush({ family, direction: "original", tuple: [to, proto], flags: all });
      }
    }
    return flushed;
  }

  /** Kernels before 6.11 can't delete by a filter, so: list by it (5.8), and delete each. */
  async #flush(filter: TupleFilter): Promise<number> {
    const reply = filter.direction === "reply";
    const found = await this.#netlink.dump({
      type: CT_GET,
      flags: 0,
      body: Buffer.concat([
        Buffer.from([filter.family, 0, 0, 0]),
        nested(reply ? CTA_TUPLE_REPLY : CTA_TUPLE_ORIG, ...filter.tuple),
        nested(CTA_FILTER, attribute32(1, reply ? 0 : filter.flags), attribute32(2, reply ? filter.flags : 0)),
      ]),
      about: "list connections",
    });
    const deletions = found.map((body): NetlinkRequest => {
      const attributes = attributesOf(body, 4);
      const kept = [CTA_TUPLE_ORIG, CTA_ZONE, CTA_ID].flatMap((type) => {
        const value = attributes.get(type);
        return value === undefined ? [] : [type === CTA_TUPLE_ORIG ? nested(type, value) : attribute(type, value)];
      });
      return {
        type: CT_DELETE,
        flags: 0,
        body: Buffer.concat([body.subarray(0, 4), ...kept]),
        about: "forget a connection",
        allow: ["ENOENT"],
      };
    });
    // Answers of one send must fit the socket's buffer (212,992 bytes; 36 each).
    for (let at = 0; at < deletions.length; at += 500) await this.#netlink.later(deletions.slice(at, at + 500));
    return found.length;
  }
}
