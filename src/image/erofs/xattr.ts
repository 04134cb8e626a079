import type { ByteString } from "../layer-entry.ts";
import type { LayerNode } from "../layer-node.ts";

/** Prefixes are stored as a number; the name that follows has at most 255 bytes. */
const prefixes: readonly (readonly [prefix: string, index: number])[] = [
  ["user.", 1],
  ["trusted.", 4],
  ["security.", 6],
];

const headerSize = 12;
export const opaqueName = "trusted.overlay.opaque";
const none = Buffer.alloc(0);

/** Whether the node has any xattr in the image: its own, or overlayfs's mark of an opaque directory. */
export function hasXattrs(node: LayerNode): boolean {
  return node.xattrs.size > 0 || node.opaque;
}

/**
 * The inline xattrs that follow an inode: a header of 12 zero bytes, then entries padded to 4 bytes, in the order of
 * their names. Empty when there are none.
 */
export function encodeXattrs(node: LayerNode): Buffer {
  if (!hasXattrs(node)) return none;
  const all = new Map<ByteString, Uint8Array>(node.xattrs);
  if (node.opaque) all.set(opaqueName, Buffer.from("y"));
  const entries = [...all.keys()].sort().map((name) => encodeEntry(name, all.get(name) ?? none));
  return Buffer.concat([Buffer.alloc(headerSize), ...entries]);
}

/** The bytes that `encodeXattrs` gives. */
export function xattrsSize(node: LayerNode): number {
  return hasXattrs(node) ? encodeXattrs(node).length : 0;
}

/** `i_xattr_icount` for that many bytes: 1 for the header and 1 for each 4 bytes after it; 0 for none. */
export function xattrCount(size: number): number {
  return size === 0 ? 0 : 1 + (size - headerSize) / 4;
}

/** The inverse of `xattrCount`. */
export function xattrsBytes(count: number): number {
  return count === 0 ? 0 : headerSize + (count - 1) * 4;
}

/** The inverse of `encodeXattrs`; an opaque directory's mark is among them. */
export function decodeXattrs(bytes: Buffer): Map<ByteString, Uint8Array> {
  const xattrs = new Map<ByteString, Uint8Array>();
  for (let at = headerSize; at < bytes.length; ) {
    const nameEnd = at + 4 + bytes.readUInt8(at);
    const valueEnd = nameEnd + bytes.readUInt16LE(at + 2);
    const prefix = prefixes.find(([, index]) => index === bytes.readUInt8(at + 1))?.[0] ?? "";
    xattrs.set(prefix + bytes.toString("latin1", at + 4, nameEnd), bytes.subarray(nameEnd, valueEnd));
    at = (valueEnd + 3) & ~3;
  }
  return xattrs;
}

function encodeEntry(name: ByteString, value: Uint8Array): Buffer {
  const found = prefixes.find(([prefix]) => name.startsWith(prefix));
  if (found === undefined) throw new RangeError(`no EROFS prefix for the xattr ${name}`);
  const [prefix, index] = found;
  const rest = name.slice(prefix.length);
  const bytes = Buffer.alloc((4 + rest.length + value.length + 3) & ~3);
  bytes.writeUInt8(rest.length, 0);
  bytes.writeUInt8(index, 1);
  bytes.writeUInt16LE(value.length, 2);
  bytes.write(rest, 4, "latin1");
  bytes.set(value, 4 + rest.length);
  return bytes;
}
