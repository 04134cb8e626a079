import { type ByteString, noXattrs, type Timestamp } from "./layer-entry.ts";

export type NodeType = "directory" | "file" | "symlink" | "fifo" | "whiteout";

/**
 * An inode of a layer's tree. Hard links are several names for one node. A whiteout hides the same name in the layers
 * below; an opaque directory hides all that they have in it.
 */
export class LayerNode {
  readonly type: NodeType;
  mode = 0o755;
  uid = 0;
  gid = 0;
  mtime: Timestamp = { seconds: 0, nanoseconds: 0 };
  xattrs: ReadonlyMap<ByteString, Uint8Array> = noXattrs;
  /** Names that refer to this node, `.` and `..` included. */
  links = 0;
  /** Of a file: where its content is in the image, in blocks, and its bytes. */
  block = 0;
  size = 0;
  /** Of a small file whose content is to stand behind its inode: where that is held meanwhile; null: it is in blocks. */
  inline: number | null = null;
  /** Of a symlink. */
  target: ByteString = "";
  /** Of a directory. */
  readonly children: Map<ByteString, LayerNode> | null;
  opaque = false;
  /** A directory that the layer uses but has no entry for; its attributes are a lower layer's, if that has it. */
  implicit = false;
  /** Set by the layout of the image: the node's number in units of 32 bytes, and a directory's parent's. 0: none yet. */
  nid = 0;
  parentNid = 0;

  constructor(type: NodeType) {
    this.type = type;
    this.children = type === "directory" ? new Map() : null;
  }
}
