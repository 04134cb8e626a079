import { isIP } from "node:net";

/** The files that a container gets from its host, by their name in /etc. */
export type HostFiles = Record<"hosts" | "resolv.conf" | "hostname", string>;

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

/** Of the host's files of resolvers the first that names one which containers reach, or else the first. */
export function usedResolvConf(texts: readonly string[]): string {
  return texts.find((text) => reachable(text).length > 0) ?? texts[0] ?? "";
}

/** The resolvers that containers of a host with this /etc/resolv.conf ask (resolv.conf(5)): none on loopback. */
export function nameservers(hostResolvConf: string): string[] {
  const usable = reachable(hostResolvConf);
  return (usable.length > 0 ? usable : publicNameservers).slice(0, 3);
}

function reachable(resolvConf: string): string[] {
  return resolvConf.split("\n").flatMap((line) => {
    const address = /^\s*nameserver\s+(\S+)\s*$/.exec(line)?.[1];
    return address !== undefined && isIP(address) !== 0 && !isLoopback(address) ? [address] : [];
  });
}

function resolvConf(host: string): string {
  const kept = host.split("\n").filter((line) => /^(search|options)\s/.test(line));
  return [...nameservers(host).map((address) => `nameserver ${address}`), ...kept, ""].join("\n");
}

function isLoopback(address: string): boolean {
  return address.startsWith("127.") || address === "::1";
}
