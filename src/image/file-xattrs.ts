import { getSystemErrorName } from "node:util";
import koffi from "koffi";
import { type ByteString, noXattrs } from "./layer-entry.ts";

const libc = koffi.load(null);
type ListXattr = (path: Buffer, list: Buffer | null, size: number) => number;
type GetXattr = (path: Buffer, name: Buffer, value: Buffer | null, size: number) => number;
const llistxattr = libc.func("llistxattr", "intptr_t", ["void *", "void *", "size_t"]) as unknown as ListXattr;
const lgetxattr = libc.func("lgetxattr", "intptr_t", ["void *", "void *", "void *", "size_t"]) as unknown as GetXattr;

/** The kernel's limits for one list of names and one value (xattr(7)). */
const buffer = Buffer.alloc(65_536);

/**
 * The extended attributes of a file itself, never of what a symlink points to; as root `trusted.*` too. `path` is bytes.
 * Node has no call for it. @throws Error with the errno's name as its `code`.
 */
export function readXattrs(path: Buffer): ReadonlyMap<ByteString, Uint8Array> {
  const file = terminated(path);
  const listed = checked(llistxattr(file, buffer, buffer.length), "llistxattr");
  if (listed === 0) return noXattrs;
  const names = buffer.toString("latin1", 0, listed - 1).split("\0");
  const xattrs = new Map<ByteString, Uint8Array>();
  for (const name of names) {
    const size = checked(lgetxattr(file, terminated(Buffer.from(name, "latin1")), buffer, buffer.length), "lgetxattr");
    xattrs.set(name, Buffer.from(buffer.subarray(0, size)));
  }
  return xattrs;
}

function terminated(bytes: Buffer): Buffer {
  return Buffer.concat([bytes, Buffer.alloc(1)]);
}

function checked(result: number, call: string): number {
  if (result >= 0) return result;
  const code = getSystemErrorName(-koffi.errno());
  throw Object.assign(new Error(`${call}: ${code}`), { code });
}
