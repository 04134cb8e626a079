import type { TreeEntry } from "../../build/tree.ts";
import type { ByteString, Timestamp } from "../../image/layer-entry.ts";

/** A file of a context or of an image's root, as COPY takes it over. Names and link targets are byte strings. */
export interface FileEntry extends TreeEntry {
  type: "file" | "directory" | "symlink" | "other";
  /** Permission bits: 0–0o7777. */
  mode: number;
  uid: number;
  gid: number;
  mtime: Timestamp;
  /** Bytes of content; 0 unless it is a file. */
  size: number;
  target: ByteString;
  xattrs: ReadonlyMap<ByteString, Uint8Array>;
}

/** A tree of files whose content can be read. */
export interface FileTree<E extends FileEntry = FileEntry> {
  get(path: ByteString): Promise<E | null>;
  list(path: ByteString): Promise<readonly ByteString[]>;
  /** The bytes of a file that `get` found at this path. */
  read(path: ByteString, entry: E): AsyncIterable<Uint8Array>;
}
