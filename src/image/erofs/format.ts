import type { Timestamp } from "../layer-entry.ts";
import type { LayerNode, NodeType } from "../layer-node.ts";

/*
 * EROFS's on-disk format as in Linux's fs/erofs/erofs_fs.h: little endian, 4 KiB blocks, no optional feature, so that
 * every kernel that has EROFS reads it (5.4 and later). Offsets below are those of the C structures.
 */

export const blockBits = 12;
export const blockSize = 1 << blockBits;
export const superblockOffset = 1024;
export const superblockSize = 128;
export const inodeSize = 64;
/** Inodes are addressed in units of this many bytes from the start of the metadata. */
export const nidUnit = 32;
export const direntSize = 12;

const magic = 0xe0f5e1e2;
/** Compatible feature: inodes carry a modification time. */
const featureMtime = 0x2;
/** `i_format`: bit 0 the 64-byte inode, bits 1–3 the layout of the data. */
const extended = 1;
const layouts = { plain: 0, inline: 2 } as const;

export const modeBits = {
  directory: 0o040000,
  file: 0o100000,
  symlink: 0o120000,
  fifo: 0o010000,
  // Overlayfs's whiteout is a character device 0/0.
  whiteout: 0o020000,
} as const;

/** The types of directory entries, as in linux/fs_types.h. */
export const fileTypes = { file: 1, directory: 2, whiteout: 3, fifo: 5, symlink: 7 } as const;

/** Rounds up to whole blocks; bytes to blocks. */
export function blocksOf(bytes: number): number {
  return Math.ceil(bytes / blockSize);
}

export interface Superblock {
  rootNid: number;
  inodes: number;
  /** Blocks of the whole image. */
  blocks: number;
  /** The block at which the metadata starts. */
  metadataBlock: number;
  uuid: Uint8Array;
}

/** `struct erofs_super_block`. No checksum: who mounts it has checked the file's size and origin. */
export function encodeSuperblock(superblock: Superblock): Buffer {
  const bytes = Buffer.alloc(superblockSize);
  bytes.writeUInt32LE(magic, 0);
  bytes.writeUInt32LE(featureMtime, 8);
  bytes.writeUInt8(blockBits, 12);
  bytes.writeUInt16LE(superblock.rootNid, 14);
  bytes.writeUInt32LE(superblock.inodes, 16);
  bytes.writeUInt32LE(superblock.blocks, 36);
  bytes.writeUInt32LE(superblock.metadataBlock, 40);
  bytes.set(superblock.uuid.subarray(0, 16), 48);
  return bytes;
}

/** Where a node's data is: in whole blocks from `block`, or right behind the inode and its xattrs. */
export interface DataPlace {
  layout: keyof typeof layouts;
  block: number;
  size: number;
}

/** `struct erofs_inode_extended`, without the xattrs that follow it. `xattrCount` as in xattr.ts. */
export function encodeInode(node: LayerNode, data: DataPlace, xattrCount: number): Buffer {
  const bytes = Buffer.alloc(inodeSize);
  bytes.writeUInt16LE(extended | (layouts[data.layout] << 1), 0);
  bytes.writeUInt16LE(xattrCount, 2);
  bytes.writeUInt16LE(modeBits[node.type] | node.mode, 4);
  bytes.writeUInt32LE(data.size % 2 ** 32, 8);
  bytes.writeUInt32LE(Math.floor(data.size / 2 ** 32), 12);
  // Of a whiteout this is the device number, 0.
  bytes.writeUInt32LE(data.block, 16);
  bytes.writeUInt32LE(node.nid % 2 ** 32, 20);
  bytes.writeUInt32LE(node.uid, 24);
  bytes.writeUInt32LE(node.gid, 28);
  bytes.writeBigInt64LE(BigInt(node.mtime.seconds), 32);
  bytes.writeUInt32LE(node.mtime.nanoseconds, 40);
  bytes.writeUInt32LE(node.links, 44);
  return bytes;
}

/** The inverse of `encodeSuperblock`, for what a look-up needs. @throws RangeError when it is none. */
export function decodeSuperblock(bytes: Buffer): Pick<Superblock, "rootNid" | "metadataBlock"> {
  if (bytes.readUInt32LE(0) !== magic) throw new RangeError("this is not an EROFS image");
  return { rootNid: bytes.readUInt16LE(14), metadataBlock: bytes.readUInt32LE(40) };
}

export interface DecodedInode {
  type: NodeType;
  mode: number;
  uid: number;
  gid: number;
  mtime: Timestamp;
  size: number;
  block: number;
  inline: boolean;
  xattrCount: number;
}

/** The inverse of `encodeInode`. */
export function decodeInode(bytes: Buffer): DecodedInode {
  const mode = bytes.readUInt16LE(4);
  const type = (Object.keys(modeBits) as NodeType[]).find((one) => modeBits[one] === (mode & 0o170000));
  if (type === undefined) throw new RangeError("an inode of a type that Berth does not write");
  return {
    type,
    mode: mode & 0o7777,
    uid: bytes.readUInt32LE(24),
    gid: bytes.readUInt32LE(28),
    mtime: { seconds: Number(bytes.readBigInt64LE(32)), nanoseconds: bytes.readUInt32LE(40) },
    size: bytes.readUInt32LE(8) + bytes.readUInt32LE(12) * 2 ** 32,
    block: bytes.readUInt32LE(16),
    inline: bytes.readUInt16LE(0) >> 1 === layouts.inline,
    xattrCount: bytes.readUInt16LE(2),
  };
}
