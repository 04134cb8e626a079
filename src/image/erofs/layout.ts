import { setImmediate } from "node:timers/promises";
import type { LayerNode } from "../layer-node.ts";
import { directoryNames, directorySize } from "./directory.ts";
import { blockSize, blocksOf, inodeSize, nidUnit } from "./format.ts";
import { xattrsSize } from "./xattr.ts";

/** Nodes that are placed (about 1 µs each) before other work of the process gets its turn. */
const nodesAtOnce = 10_000;

/** The plan of an image's metadata. */
export interface Layout {
  /** Every inode once, in the order of its nids. */
  inodes: LayerNode[];
  /** What is inline and too large to stand behind its inode, in the order of their blocks. */
  apart: LayerNode[];
  /** Blocks that `apart` takes. */
  apartBlocks: number;
  /** Bytes of the metadata region. */
  metadataBytes: number;
}

/** Whether a node's data is to stand behind its inode: directories, symlinks and small files. */
export function isInline(node: LayerNode): boolean {
  return node.type === "directory" || node.type === "symlink" || node.inline !== null;
}

/**
 * Gives every node its number, breadth first, so that the inodes of one directory lie together. Data that is inline stands
 * right behind its inode, which it may not leave the block of; where it would, it gets blocks of its own from `firstBlock`
 * on. nid 0 is left free: a zero inode number is skipped by readers.
 */
export async function layOut(root: LayerNode, firstBlock: number): Promise<Layout> {
  const layout: Layout = { inodes: [], apart: [], apartBlocks: 0, metadataBytes: inodeSize };
  const place = (node: LayerNode, parentNid: number): void => {
    const names = node.type === "directory" ? directoryNames(node) : [];
    if (node.type === "directory") node.size = directorySize(names);
    if (node.type === "symlink") node.size = node.target.length;
    let bytes = inodeSize + xattrsSize(node);
    if (isInline(node)) {
      if (bytes + node.size <= blockSize) {
        bytes += node.size;
        const left = blockSize - (layout.metadataBytes % blockSize);
        if (bytes > left) layout.metadataBytes += left;
      } else {
        node.block = firstBlock + layout.apartBlocks;
        layout.apartBlocks += blocksOf(node.size);
        layout.apart.push(node);
      }
    }
    node.nid = layout.metadataBytes / nidUnit;
    node.parentNid = parentNid === 0 ? node.nid : parentNid;
    layout.metadataBytes += Math.ceil(bytes / nidUnit) * nidUnit;
    layout.inodes.push(node);
  };
  root.links = 1;
  place(root, 0);
  // The array grows while it is walked: directories add their children.
  let turn = 0;
  for (const node of layout.inodes) {
    if (layout.inodes.length > turn + nodesAtOnce) {
      turn = layout.inodes.length;
      await setImmediate();
    }
    if (node.children === null) continue;
    node.links++;
    for (const child of node.children.values()) {
      if (child.type === "directory") node.links++;
      if (child.nid === 0) place(child, node.nid);
    }
  }
  return layout;
}
