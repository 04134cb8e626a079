import { BerthError } from "../../core/errors.ts";
import { type ByteString, type LayerEntry, noContent, showBytes, type Timestamp } from "../../image/layer-entry.ts";
import type { FileEntry, FileTree } from "./file-entry.ts";

/** Who owns the directories that have to be made, and their times. */
export interface Making {
  uid: number;
  gid: number;
  mtime: Timestamp;
}

/**
 * The directories of a layer in the making, over the root that it will be mounted on. In an overlay the topmost
 * layer's directory decides the attributes, so every directory on the way to a new file is an entry of its own: one
 * that is below already as it is there, one that is missing made.
 */
export class Destination {
  readonly #below: FileTree;
  readonly #making: Making;
  /** Directories that have their entry, and whether the root below has them too. */
  readonly #directories = new Map<ByteString, boolean>();

  constructor(below: FileTree, making: Making) {
    this.#below = below;
    this.#making = making;
  }

  /** Whether the layer has this directory already. */
  has(path: ByteString): boolean {
    return this.#directories.has(path);
  }

  /** What the root below has at this path; all directories above it have been given by `directories`. */
  async existing(path: ByteString): Promise<FileEntry | null> {
    return this.#directories.get(parentOf(path)) === false ? null : this.#below.get(path);
  }

  /** Entries of the directories from the root down to `path`, without those given before. */
  async *directories(path: ByteString): AsyncGenerator<LayerEntry> {
    if (this.#directories.has(path)) return;
    if (path !== "/") yield* this.directories(parentOf(path));
    const there = await this.existing(path);
    if (there !== null && there.type !== "directory") {
      throw new BerthError(
        "invalid_context",
        `${showBytes(path)} is not a directory, so nothing can be copied into it.`,
      );
    }
    this.#directories.set(path, there !== null);
    yield there === null ? directory(path, { ...this.#making, mode: 0o755 }) : directory(path, there);
  }

  /** The entry of a directory with attributes of its own, in place of what is there. */
  async *described(
    path: ByteString,
    attributes: Omit<FileEntry, "type" | "size" | "target">,
  ): AsyncGenerator<LayerEntry> {
    if (path !== "/") yield* this.directories(parentOf(path));
    const there = await this.existing(path);
    if (there !== null && there.type !== "directory") {
      throw new BerthError("invalid_context", `A directory can't be copied over ${showBytes(path)}, which is none.`);
    }
    this.#directories.set(path, there !== null);
    yield directory(path, attributes);
  }
}

export function parentOf(path: ByteString): ByteString {
  const slash = path.lastIndexOf("/");
  return slash <= 0 ? "/" : path.slice(0, slash);
}

function directory(path: ByteString, attributes: Making & { mode: number; xattrs?: FileEntry["xattrs"] }): LayerEntry {
  const { mode, uid, gid, mtime, xattrs } = attributes;
  return {
    path: `${path.slice(1)}/`,
    type: "directory",
    mode,
    uid,
    gid,
    mtime,
    size: 0,
    target: "",
    xattrs: xattrs ?? new Map(),
    content: noContent,
  };
}
