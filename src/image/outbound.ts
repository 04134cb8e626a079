import { lookup as resolve } from "node:dns";
import { BlockList, isIP, type LookupFunction } from "node:net";
import { BerthError } from "../core/errors.ts";

/*
 * Networks that tenants' URLs don't reach: this host, private and shared ones, link-local (cloud metadata), multicast,
 * reserved, and IPv6 ranges that wrap an IPv4 address (IANA special-purpose registries).
 */
const refused4 = [
  "0.0.0.0/8",
  "10.0.0.0/8",
  "100.64.0.0/10",
  "127.0.0.0/8",
  "169.254.0.0/16",
  "172.16.0.0/12",
  "192.0.0.0/24",
  "192.0.2.0/24",
  "192.88.99.0/24",
  "192.168.0.0/16",
  "198.18.0.0/15",
  "198.51.100.0/24",
  "203.0.113.0/24",
  "224.0.0.0/4",
  "240.0.0.0/4",
];
/** Only 2000::/3 is routed; of it, what wraps IPv4 (Teredo, 6to4) or is documentation is refused too. */
const routed6 = ["2000::/3"];
const refused6 = ["2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"];

/**
 * Decides which addresses outbound connections may go to. The decision is made on the address that is connected to, after
 * the name was resolved, so neither a redirect nor a name that resolves anew can get around it.
 */
export class OutboundPolicy {
  readonly #refused: BlockList;
  readonly #routed6: BlockList;
  readonly #allowed: BlockList;
  readonly #trusted: ReadonlySet<string>;

  /**
   * @param allow CIDR blocks (or addresses) that may be reached although they are not public.
   * @param trusted Origins such as `http://127.0.0.1:5000` that the operator set up, wherever they are.
   */
  constructor(allow: readonly string[], trusted: Iterable<string> = []) {
    this.#refused = blockList([...refused4, ...refused6]);
    this.#routed6 = blockList(routed6);
    this.#allowed = blockList(allow);
    this.#trusted = new Set(trusted);
  }

  /** Whether a connection to this IP address is allowed. */
  allows(address: string): boolean {
    const plain = unmapped(address);
    const family = isIP(plain);
    if (family === 0) return false;
    if (this.#allowed.check(plain, family === 4 ? "ipv4" : "ipv6")) return true;
    if (family === 4) return !this.#refused.check(plain, "ipv4");
    return this.#routed6.check(plain, "ipv6") && !this.#refused.check(plain, "ipv6");
  }

  /**
   * A `lookup` for `net.connect` to reach this URL with: every address it answers has been checked.
   * @throws BerthError `address_refused` when the URL's host is itself an address that is refused. (`net.connect` does not
   * look addresses up.)
   */
  lookupFor(url: URL): LookupFunction {
    if (this.#trusted.has(url.origin)) return resolve;
    const host = url.hostname.replace(/^\[|\]$/g, "");
    if (isIP(host) !== 0 && !this.allows(host)) throw refusal(host);
    return (hostname, options, callback) => {
      resolve(hostname, { ...options, all: true }, (error, addresses) => {
        if (error !== null) {
          callback(error, "");
          return;
        }
        const allowed = addresses.filter(({ address }) => this.allows(address));
        const first = allowed[0];
        if (first === undefined) callback(refusal(hostname), "");
        else if (options.all === true) callback(null, allowed);
        else callback(null, first.address, first.family);
      });
    };
  }

  /**
   * The addresses of the URL's host that may be connected to: at least one.
   * @throws BerthError `address_refused` when there is none; the resolver's error.
   */
  addressesOf(url: URL): Promise<string[]> {
    const host = url.hostname.replace(/^\[|\]$/g, "");
    const lookup = this.lookupFor(url);
    return new Promise((settle, fail) => {
      lookup(host, { all: true }, (error, found) => {
        if (error !== null) fail(error);
        else settle(Array.isArray(found) ? found.map(({ address }) => address) : [found]);
      });
    });
  }
}

function refusal(host: string): BerthError {
  return new BerthError(
    "address_refused",
    `Berth does not connect to ${JSON.stringify(host.slice(0, 253))}: it is in a private or reserved network.`,
  );
}

/** The IPv4 address within an IPv4-mapped IPv6 address; any other as it is, without a zone. */
function unmapped(address: string): string {
  const plain = address.replace(/%.*$/, "");
  if (isIP(plain) !== 6) return plain;
  // The URL parser writes every spelling of an address in one way.
  const mapped = /^::ffff:([0-9a-f]{1,4}):([0-9a-f]{1,4})$/.exec(new URL(`http://[${plain}]`).hostname.slice(1, -1));
  if (mapped === null) return plain;
  const high = Number.parseInt(mapped[1] ?? "", 16);
  const low = Number.parseInt(mapped[2] ?? "", 16);
  return [high >> 8, high & 255, low >> 8, low & 255].join(".");
}

/** @throws RangeError for what is neither an address nor a CIDR block. */
function blockList(blocks: readonly string[]): BlockList {
  const list = new BlockList();
  for (const block of blocks) {
    const [network = "", prefix] = block.split("/");
    const family = isIP(network);
    const bits = prefix === undefined ? (family === 4 ? 32 : 128) : Number(prefix);
    if (family === 0 || !/^\d{1,3}$/.test(prefix ?? "0") || bits > (family === 4 ? 32 : 128)) {
      throw new RangeError(`${JSON.stringify(block)} is not a CIDR block`);
    }
    list.addSubnet(network, bits, family === 4 ? "ipv4" : "ipv6");
  }
  return list;
}
