import type { ByteString } from "../layer-entry.ts";
import type { LayerNode } from "../layer-node.ts";
import { blockSize, direntSize, fileTypes } from "./format.ts";

/** All names of a directory in bytewise order, `.` and `..` among them: lookups are binary searches. */
export function directoryNames(directory: LayerNode): ByteString[] {
  return [".", "..", ...(directory.children?.keys() ?? [])].sort();
}

/** How many of the names from `first` fit one block: 12 bytes for each entry, then the names. */
function namesInBlock(names: readonly ByteString[], first: number): { count: number; bytes: number } {
  let bytes = 0;
  let count = 0;
  for (let i = first; i < names.length; i++) {
    const more = direntSize + (names[i]?.length ?? 0);
    if (bytes + more > blockSize) break;
    bytes += more;
    count++;
  }
  return { count, bytes };
}

/** `i_size` of the directory: whole blocks, and of the last one only what is used. */
export function directorySize(names: readonly ByteString[]): number {
  let size = 0;
  for (let first = 0; first < names.length; ) {
    const { count, bytes } = namesInBlock(names, first);
    first += count;
    size += first < names.length ? blockSize : bytes;
  }
  return size;
}

/** The directory's blocks; the last one is as long as it is used. Every node of it must have its nid. */
export function encodeDirectory(directory: LayerNode, names: readonly ByteString[]): Buffer {
  const bytes = Buffer.alloc(directorySize(names));
  for (let first = 0, base = 0; first < names.length; base += blockSize) {
    const { count } = namesInBlock(names, first);
    let nameOffset = count * direntSize;
    for (let i = 0; i < count; i++) {
      const name = names[first + i] ?? "";
      const at = base + i * direntSize;
      const { nid, type } = entryOf(directory, name);
      bytes.writeUInt32LE(nid % 2 ** 32, at);
      bytes.writeUInt32LE(Math.floor(nid / 2 ** 32), at + 4);
      bytes.writeUInt16LE(nameOffset, at + 8);
      bytes.writeUInt8(fileTypes[type], at + 10);
      bytes.write(name, base + nameOffset, "latin1");
      nameOffset += name.length;
    }
    first += count;
  }
  return bytes;
}

function entryOf(directory: LayerNode, name: ByteString): { nid: number; type: LayerNode["type"] } {
  if (name === ".") return { nid: directory.nid, type: "directory" };
  if (name === "..") return { nid: directory.parentNid, type: "directory" };
  const child = directory.children?.get(name);
  if (child === undefined || child.nid === 0) throw new RangeError("a directory entry has no inode");
  return { nid: child.nid, type: child.type };
}
