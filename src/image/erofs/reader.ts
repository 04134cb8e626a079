import { type FileHandle, open } from "node:fs/promises";
import type { ByteString, Timestamp } from "../layer-entry.ts";
import type { NodeType } from "../layer-node.ts";
import {
  blockSize,
  decodeInode,
  decodeSuperblock,
  direntSize,
  inodeSize,
  nidUnit,
  superblockOffset,
} from "./format.ts";
import { decodeXattrs, opaqueName, xattrsBytes } from "./xattr.ts";

export interface FoundNode {
  type: NodeType;
  mode: number;
  uid: number;
  gid: number;
  mtime: Timestamp;
  xattrs: Map<ByteString, Uint8Array>;
}

/** What a layer says of a path. `sealed`: nothing that lower layers have there shows through. */
export interface Lookup {
  node: FoundNode | null;
  sealed: boolean;
}

/** Looks up paths in an image of ours without mounting it. It is not meant for images from elsewhere. */
export class ErofsReader {
  readonly #file: FileHandle;
  readonly #rootNid: number;
  readonly #metadata: number;

  private constructor(file: FileHandle, rootNid: number, metadata: number) {
    this.#file = file;
    this.#rootNid = rootNid;
    this.#metadata = metadata;
  }

  static async open(path: string): Promise<ErofsReader> {
    const file = await open(path, "r");
    try {
      const { rootNid, metadataBlock } = decodeSuperblock(await readAt(file, superblockOffset, 128));
      return new ErofsReader(file, rootNid, metadataBlock * blockSize);
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  async close(): Promise<void> {
    await this.#file.close();
  }

  /** A path of components without `.` and `..`; symlinks are not followed, as overlayfs does not follow them. */
  async lookup(components: readonly ByteString[]): Promise<Lookup> {
    let sealed = false;
    let nid = this.#rootNid;
    for (let depth = 0; ; depth++) {
      const at = this.#metadata + nid * nidUnit;
      const inode = decodeInode(await readAt(this.#file, at, inodeSize));
      const xattrBytes = xattrsBytes(inode.xattrCount);
      const xattrs = decodeXattrs(await readAt(this.#file, at + inodeSize, xattrBytes));
      if (inode.type !== "directory" || xattrs.delete(opaqueName)) sealed = true;
      const name = components[depth];
      if (name === undefined) {
        const { type, mode, uid, gid, mtime } = inode;
        return { node: { type, mode, uid, gid, mtime, xattrs }, sealed };
      }
      if (inode.type !== "directory") return { node: null, sealed };
      const data = inode.inline ? at + inodeSize + xattrBytes : inode.block * blockSize;
      const found = findEntry(await readAt(this.#file, data, inode.size), name);
      if (found === null) return { node: null, sealed };
      nid = found;
    }
  }
}

/** The nid of a name in a directory's blocks; null: it is not there. */
function findEntry(directory: Buffer, name: ByteString): number | null {
  for (let base = 0; base < directory.length; base += blockSize) {
    const block = directory.subarray(base, base + blockSize);
    const count = block.readUInt16LE(8) / direntSize;
    for (let i = 0; i < count; i++) {
      const start = block.readUInt16LE(i * direntSize + 8);
      const end = i + 1 < count ? block.readUInt16LE((i + 1) * direntSize + 8) : block.length;
      // Names of a full block's last entry are padded with zeros.
      if (block.toString("latin1", start, end).replace(/\0+$/, "") === name) {
        return block.readUInt32LE(i * direntSize) + block.readUInt32LE(i * direntSize + 4) * 2 ** 32;
      }
    }
  }
  return null;
}

async function readAt(file: FileHandle, position: number, length: number): Promise<Buffer> {
  const bytes = Buffer.alloc(length);
  const { bytesRead } = await file.read(bytes, 0, length, position);
  if (bytesRead < length) throw new RangeError("a layer's image is cut short");
  return bytes;
}
