import { isIP } from "node:net";

/** The files that a container gets from its host, by their name in /etc. */
export interface HostFiles {
  hosts: string;
  "resolv.conf": string;
  hostname: string;
}

/** Used when the host resolves through its own loopback, which no container reaches: public resolvers, as Docker does. */
const publicNameservers = ["1.1.1.1", "8.8.8.8"];

/**
 * What a container reads in /etc/hosts, /etc/resolv.conf and /etc/hostname.
 * @param address the container's address, null without a network
 * @param hostResolvConf the host's /etc/resolv.conf
 */
export function hostFiles(hostname: string, address: string | null, hostResolvConf: string): HostFiles {
  return {
    hosts: [
      "127.0.0.1\tlocalhost",
      "::1\tlocalhost ip6-localhost ip6-loopback",
      `${address ?? "127.0.1.1"}\t${hostname}`,
      "",
    ].join("\n"),
    "resolv.conf": resolvConf(hostResolvConf),
    hostname: `${hostname}\n`,
  };
}

/** The host's resolvers and search list, without resolvers on loopback (resolv.conf(5)). */
function resolvConf(host: string): string {
  const lines = host.split("\n").map((line) => line.trim());
  const nameservers = lines.flatMap((line) => {
    const address = /^nameserver\s+(\S+)$/.exec(line)?.[1];
    return address !== undefined && isIP(address) !== 0 && !isLoopback(address) ? [address] : [];
  });
  const kept = lines.filter((line) => /^(search|options)\s/.test(line));
  const used = nameservers.length > 0 ? nameservers : publicNameservers;
  return [...used.slice(0, 3).map((address) => `nameserver ${address}`), ...kept, ""].join("\n");
}

function isLoopback(address: string): boolean {
  return address.startsWith("127.") || address === "::1";
}
