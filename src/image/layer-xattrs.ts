import { type ByteString, noXattrs } from "./layer-entry.ts";

const capability = "security.capability";

/**
 * The xattrs that a layer keeps: `user.*` and file capabilities. All others would speak to the host's kernel (overlay's
 * own `trusted.overlay.*` and `user.overlay.*`, security labels) or name users of another machine (ACLs).
 */
export function keptXattrs(xattrs: ReadonlyMap<ByteString, Uint8Array>): ReadonlyMap<ByteString, Uint8Array> {
  if (xattrs.size === 0) return noXattrs;
  const kept = new Map<ByteString, Uint8Array>();
  for (const [name, value] of xattrs) {
    if (name === capability) {
      const plain = plainCapability(value, 0);
      if (plain !== null) kept.set(name, plain);
    } else if (isUserXattr(name) && value.length <= 65_535) {
      kept.set(name, value);
    }
  }
  return kept.size === 0 ? noXattrs : kept;
}

function isUserXattr(name: ByteString): boolean {
  const rest = name.slice("user.".length);
  return (
    name.startsWith("user.") &&
    rest !== "" &&
    rest.length <= 250 &&
    !rest.includes("\0") &&
    rest !== "overlay" &&
    !rest.startsWith("overlay.")
  );
}

/**
 * A `security.capability` value as version 2 (linux/capability.h, vfs_cap_data), which holds for the root of whatever
 * user namespace mounts it. Version 3 names the namespace's root; it is converted when that is `rootId` and otherwise
 * dropped, as are malformed values.
 */
export function plainCapability(value: Uint8Array, rootId: number): Uint8Array | null {
  const bytes = Buffer.from(value);
  if (bytes.length < 4) return null;
  const magic = bytes.readUInt32LE(0);
  const revision = magic >>> 24;
  const effective = magic & 1;
  if (revision === 2 && bytes.length === 20) return bytes;
  if (revision !== 3 || bytes.length !== 24 || bytes.readUInt32LE(20) !== rootId) return null;
  const plain = Buffer.from(bytes.subarray(0, 20));
  plain.writeUInt32LE(((2 << 24) | effective) >>> 0, 0);
  return plain;
}
