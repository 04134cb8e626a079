import { closeSync, constants, openSync } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { BerthError } from "../core/errors.ts";
import type { ByteString } from "../image/layer-entry.ts";
import {
  hasCode,
  O_DIRECTORY,
  O_PATH,
  openat2,
  RESOLVE_IN_ROOT,
  RESOLVE_NO_MAGICLINKS,
  RESOLVE_NO_XDEV,
} from "../isolation/apply/ffi.ts";
import type { OpenRoot } from "../isolation/roots.ts";

/** Ids of a container; what is not among them is shown as `nobody`. */
const ids = 65_536;
const nobody = 65_534;

/**
 * A container's root filesystem as its tenant names things there. The tenant's processes change it meanwhile, so nothing is
 * looked up twice by a path: the kernel resolves each inside the root (openat2(2)), without leaving the filesystem, and what
 * was opened is used by its descriptor. `O_PATH` descriptors have no effect on a FIFO or a device, whatever was put there.
 */
export class ContainerRoot {
  readonly #fd: number;
  readonly #idBase: number;

  constructor({ path, idBase }: OpenRoot) {
    this.#fd = openSync(path, O_PATH | O_DIRECTORY);
    this.#idBase = idBase;
  }

  /**
   * An O_PATH handle of what the path leads to, symlinks followed.
   * @throws BerthError `file_not_found`, `invalid_path`
   */
  async open(path: string, flags = 0): Promise<FileHandle> {
    const fd = this.#resolve(path, flags);
    try {
      return await open(`/proc/self/fd/${String(fd)}`, O_PATH);
    } finally {
      closeSync(fd);
    }
  }

  #resolve(path: string, flags: number): number {
    try {
      const resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV;
      return openat2(this.#fd, path.replace(/^\/+/, "") || ".", { flags: O_PATH | flags, resolve });
    } catch (error) {
      throw pathError(error, path);
    }
  }

  /** An id of the host as the container has it. */
  idInside(id: number): number {
    const inside = id - this.#idBase;
    return inside >= 0 && inside < ids ? inside : nobody;
  }

  /** An id of an archive as the host has it; one that no container has becomes root's, as owners far from here do. */
  idOnHost(id: number): number {
    return this.#idBase + (id >= 0 && id < ids ? id : 0);
  }

  close(): void {
    closeSync(this.#fd);
  }
}

/** A name in an open directory, as a path for Node's calls: the descriptor's magic link, and one component behind it. */
export function nameIn(directory: FileHandle, name: ByteString): Buffer {
  return Buffer.concat([Buffer.from(`${linkOf(directory)}/`), Buffer.from(name, "latin1")]);
}

/** The magic link of a handle: what it was opened on, whatever has become of its name. */
export function linkOf(handle: FileHandle): string {
  return `/proc/self/fd/${String(handle.fd)}`;
}

/** A handle of a name in an open directory, itself and not where it leads; null when it has gone meanwhile. */
export async function openName(directory: FileHandle, name: ByteString): Promise<FileHandle | null> {
  try {
    return await open(nameIn(directory, name), O_PATH | constants.O_NOFOLLOW);
  } catch (error) {
    if (hasCode(error, "ENOENT")) return null;
    throw error;
  }
}

/** The client's error for what a path of its own led to; others stay as they are. */
export function pathError(error: unknown, path: string): unknown {
  const shown = JSON.stringify(path.slice(0, 300));
  if (hasCode(error, "ENOENT")) return new BerthError("file_not_found", `The container has no ${shown}.`);
  if (hasCode(error, "ENOTDIR")) return new BerthError("invalid_path", `A part of ${shown} is no directory.`);
  if (hasCode(error, "ELOOP")) return new BerthError("invalid_path", `${shown} has too many symlinks.`);
  if (hasCode(error, "ENAMETOOLONG")) return new BerthError("invalid_path", `${shown} is too long.`);
  if (hasCode(error, "EXDEV"))
    return new BerthError("invalid_path", `${shown} is not on the container's own filesystem.`);
  if (hasCode(error, "EISDIR", "ENOTEMPTY", "EEXIST")) {
    return new BerthError(
      "invalid_path",
      `${shown} is a directory, and a file was to take its place, or the other way round.`,
    );
  }
  if (hasCode(error, "ENOSPC", "EDQUOT")) return new BerthError("disk_full", "The container's disk is full.");
  return error;
}
