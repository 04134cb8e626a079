import { blocks, usableSlots } from "./layout.ts";

/**
 * Names and addresses of a host's container network. Each is a function of the instance, its block and a slot, so a
 * container's link, addresses and elements are found again by whoever comes after a crash.
 */

/** What tells one Berth's network on a machine from another's. */
export interface NetworkScope {
  /** Six hex digits. */
  instance: string;
  /** The claimed block, 0 to 30: 2,048 addresses of 10.88.0.0/16. */
  block: number;
}

/** Everything that a slot's network is made of. */
export interface SlotNetwork {
  /** The host's end of the veth pair, at most 15 characters. */
  veth: string;
  /** The host end's index: chosen, so that creation and configuration travel together. */
  index: number;
  ipv4: string;
  ipv6: string;
  /** Hardware addresses of the host's and the container's end: locally administered, from the IPv4 address. */
  hostMac: string;
  mac: string;
}

/** The container's name of its end, and its index. */
export const containerLink = { name: "eth0", index: 2 } as const;

/** Next hops inside a container. No interface has them: permanent neighbours lead there. */
export const gateway = { ipv4: "169.254.1.1", ipv6: "fe80::1" } as const;

/** Far above what the kernel numbers by itself, which counts up from 1. */
const firstIndex = 0x0b_00_00_00;

/** The nftables table of an instance, family inet. */
export function tableName(scope: NetworkScope): string {
  return `berth_${scope.instance}`;
}

/** What names of an instance's host links begin with. */
export function vethPrefix(scope: NetworkScope): string {
  return `bt${scope.instance}`;
}

/** The slot of a host link's name; null: not a link of this instance. */
export function slotOfVeth(scope: NetworkScope, name: string): number | null {
  const prefix = vethPrefix(scope);
  const digits = name.slice(prefix.length);
  if (!name.startsWith(prefix) || !/^(?:0|[1-9a-z][0-9a-z]{0,2})$/.test(digits)) return null;
  const slot = Number.parseInt(digits, 36);
  return slot < usableSlots ? slot : null;
}

/** The slot whose address this is, IPv4 or IPv6 as `slotNetwork` writes them; null: not an address of this instance. */
export function slotOfAddress(scope: NetworkScope, address: string): number | null {
  const tail6 = `${prefix6(scope)}::1:`;
  let number: number;
  if (address.startsWith(tail6)) number = Number.parseInt(address.slice(tail6.length), 16);
  else {
    const [a, b, c = 0, d = 0] = address.split(".").map(Number);
    if (a !== 10 || b !== 88) return null;
    number = c * 256 + d;
  }
  const slot = number - scope.block * 2048 - 1;
  return slot >= 0 && slot < usableSlots ? slot : null;
}

/** The block of IPv4 addresses that the instance's containers live in, a /21. */
export function subnet4(scope: NetworkScope): { address: string; bits: number } {
  return { address: ipv4Text(scope.block * 2048), bits: 21 };
}

/** A unique local prefix (RFC 4193) of the instance, a /64. */
export function subnet6(scope: NetworkScope): { address: string; bits: number } {
  return { address: `${prefix6(scope)}::`, bits: 64 };
}

/** The source that a container sees when it reaches itself through its own published port over IPv6. */
export function hairpinSource6(scope: NetworkScope): string {
  return `${prefix6(scope)}::1`;
}

/** @throws RangeError when the block or slot is outside of its range. */
export function slotNetwork(scope: NetworkScope, slot: number): SlotNetwork {
  if (!Number.isInteger(slot) || slot < 0 || slot >= usableSlots) {
    throw new RangeError(`slot ${slot} is outside of 0 to ${usableSlots - 1}`);
  }
  if (!Number.isInteger(scope.block) || scope.block < 0 || scope.block >= blocks) {
    throw new RangeError(`block ${scope.block} is outside of 0 to ${blocks - 1}`);
  }
  const number = scope.block * 2048 + slot + 1;
  const hex = (88 * 65_536 + number).toString(16).padStart(6, "0");
  const tail = `0a:${hex.slice(0, 2)}:${hex.slice(2, 4)}:${hex.slice(4, 6)}`;
  return {
    veth: `${vethPrefix(scope)}${slot.toString(36)}`,
    index: firstIndex + number,
    ipv4: ipv4Text(number),
    ipv6: `${prefix6(scope)}::1:${number.toString(16)}`,
    hostMac: `02:bf:${tail}`,
    mac: `02:be:${tail}`,
  };
}

function ipv4Text(number: number): string {
  return `10.88.${number >> 8}.${number & 255}`;
}

/** fd, the instance as 24 bits of the global id, a constant as its other 16, the block as the subnet id. */
function prefix6(scope: NetworkScope): string {
  const groups = [`fd${scope.instance.slice(0, 2)}`, scope.instance.slice(2), "be72", scope.block.toString(16)];
  return groups.map((group) => Number.parseInt(group, 16).toString(16)).join(":");
}
