import { chownSync, closeSync, mkdirSync, openSync, readdirSync, readSync, rmSync } from "node:fs";
import { rm } from "node:fs/promises";
import { BerthError } from "../../core/errors.ts";
import { type DiskTemplate, makeTemplate, stamp } from "./disk-template.ts";
import { hasCode } from "./ffi.ts";
import { attachLoop, listLoops } from "./loop.ts";
import { attachMount, MOUNT_ATTR_NOATIME, MOUNT_ATTR_NODEV, newMountLater, unmountLater } from "./mount-api.ts";
import { run } from "./spawn.ts";

/**
 * A container's disk: a sparse file with an ext4 filesystem of the size that is its limit, in bytes and in inodes, for
 * its writable layer. The file lives as long as the container, over stops and starts.
 */
export const smallestDisk = 16 * 1024 * 1024;
const blockSize = 4096;
/** Sizes come from tenants: the memory for templates (250 KB each) has to be bounded. */
const keptTemplates = 16;

export class Disks {
  readonly #dir: string;
  readonly #templates = new Map<number, Promise<DiskTemplate>>();

  /** `dir` holds the files, `<slot>.img`, and must exist. */
  constructor(dir: string) {
    this.#dir = dir;
    // What a crash left of the making of a template.
    for (const name of readdirSync(dir)) if (/^template-|\.new$/.test(name)) rmSync(`${dir}/${name}`);
  }

  path(slot: number): string {
    return `${this.#dir}/${slot}.img`;
  }

  /**
   * Makes a slot's disk, empty; a file that is there is replaced. 0.5 ms when a disk of this size was made before.
   * @param size bytes; rounded up to whole blocks and to the smallest disk
   */
  create(slot: number, size: number): Promise<void> {
    return this.createAt(this.path(slot), size);
  }

  /** The same, as a file of any place. */
  async createAt(path: string, size: number): Promise<void> {
    const template = await this.#template(Math.max(smallestDisk, Math.ceil(size / blockSize) * blockSize));
    stamp(template, path);
  }

  /**
   * Mounts a slot's disk on a directory, with `upper` and `work` in it that belong to the container's base id. 3 ms.
   * Set-user-id files work, as images need them; devices don't.
   * @throws as `mountAt`
   */
  async mount(slot: number, target: string, idBase: number): Promise<void> {
    await this.mountAt(this.path(slot), target);
    for (const name of ["upper", "work"]) {
      try {
        mkdirSync(`${target}/${name}`, { mode: 0o755 });
        chownSync(`${target}/${name}`, idBase, idBase);
      } catch (error) {
        if (!hasCode(error, "EEXIST")) throw error;
      }
    }
  }

  /**
   * Mounts a disk's file on a directory. The loop device frees itself when the mount ends. A disk that was in use when the
   * host went down is checked first.
   * @param more flags of ext4, and attributes of the mount
   * @throws BerthError `start_failed` when the disk is damaged beyond repair, or still in use.
   */
  async mountAt(
    path: string,
    target: string,
    more: { flags?: readonly string[]; attributes?: number } = {},
  ): Promise<void> {
    if (!isClean(path)) await this.#check(path);
    const loop = await attachLoop(path, { readOnly: false, direct: true });
    try {
      // The file came with zeros where inode tables are: nothing for the kernel to initialize in the background.
      const options = [
        ["source", loop.path],
        ["noinit_itable", true],
        ["errors", "remount-ro"],
        ...(more.flags ?? []).map((flag) => [flag, true] as const),
      ] as const;
      const attributes = MOUNT_ATTR_NODEV | MOUNT_ATTR_NOATIME | (more.attributes ?? 0);
      const mount = await newMountLater("ext4", options, attributes);
      try {
        attachMount(mount, target);
      } finally {
        closeSync(mount);
      }
    } finally {
      closeSync(loop.fd);
    }
  }

  /** Unmounts a disk. Idempotent. EBUSY: something in this mount namespace uses it. */
  async unmount(target: string): Promise<void> {
    await unmountLater(target).catch((error: unknown) => {
      if (!hasCode(error, "EINVAL", "ENOENT")) throw error;
    });
  }

  /** Whether the disk is in use, by whatever mount namespace. */
  isAttached(slot: number): boolean {
    return listLoops().some((loop) => loop.file === this.path(slot));
  }

  /** Deletes a slot's disk. Idempotent. Off the event loop: 1 ms and more, by what was written to it. */
  async remove(slot: number): Promise<void> {
    await rm(this.path(slot), { force: true });
  }

  /** The slots that have a disk, for the sweep. */
  slots(): number[] {
    return readdirSync(this.#dir).flatMap((name) => {
      const digits = /^(\d+)\.img$/.exec(name)?.[1];
      return digits === undefined ? [] : [Number(digits)];
    });
  }

  #template(size: number): Promise<DiskTemplate> {
    let template = this.#templates.get(size);
    if (template === undefined) {
      template = makeTemplate(size, `${this.#dir}/template-${size}`);
      template.catch(() => this.#templates.delete(size));
    }
    // The most recently used one is last; the first is the one to forget.
    this.#templates.delete(size);
    this.#templates.set(size, template);
    const [oldest] = this.#templates.keys();
    if (oldest !== undefined && this.#templates.size > keptTemplates) this.#templates.delete(oldest);
    return template;
  }

  /** Repairs what a crash of the host left; nothing else leaves a disk unclean that no one uses. */
  async #check(path: string): Promise<void> {
    if (listLoops().some((loop) => loop.file === path)) {
      throw new BerthError("start_failed", "The container's disk is still in use by an earlier run.");
    }
    const checked = await run({ file: "/usr/sbin/e2fsck", args: ["-f", "-y", path], timeoutMs: 600_000 });
    // 0: clean, 1: repaired (e2fsck(8), exit code).
    if (checked.exitCode !== 0 && checked.exitCode !== 1) {
      throw new BerthError("start_failed", "The container's disk is damaged and can't be repaired.", {
        cause: new Error(checked.stdout.bytes.toString()),
      });
    }
  }
}

/** Whether the filesystem was unmounted in order: the kernel clears the mark while it is mounted for writing. */
function isClean(path: string): boolean {
  const fd = openSync(path, "r");
  try {
    const state = Buffer.alloc(2);
    readSync(fd, state, 0, 2, 1024 + 0x3a);
    return state.readUInt16LE() === 1;
  } finally {
    closeSync(fd);
  }
}
