import { closeSync, readSync } from "node:fs";
import { bind, bindSyscall, O_CLOEXEC, SyscallError } from "./ffi.ts";

/** The kernel's mount calls (mount_setattr(2), fsopen(2) and companions, since 5.12). Paths are the worker's own. */

export const MOUNT_ATTR_RDONLY = 0x1;
export const MOUNT_ATTR_NOSUID = 0x2;
export const MOUNT_ATTR_NODEV = 0x4;
export const MOUNT_ATTR_NOEXEC = 0x8;
export const MOUNT_ATTR_NOATIME = 0x10;
const MOUNT_ATTR_IDMAP = 0x100000;

const AT_FDCWD = -100;
const AT_EMPTY_PATH = 0x1000;
const OPEN_TREE_CLONE = 1;
const MOVE_MOUNT_F_EMPTY_PATH = 4;
const FSCONFIG_SET_FLAG = 0;
const FSCONFIG_SET_STRING = 1;
const FSCONFIG_SET_FD = 5;
const FSCONFIG_CMD_CREATE = 6;
const UMOUNT_NOFOLLOW = 8;
const MNT_DETACH = 2;

const rawOpenTree = bindSyscall<[number, string, number]>("open_tree", 428, ["int", "str", "uint"]);
const rawMoveMount = bindSyscall<[number, string, number, string, number]>("move_mount", 429, [
  "int",
  "str",
  "int",
  "str",
  "uint",
]);
const rawFsopen = bindSyscall<[string, number]>("fsopen", 430, ["str", "uint"]);
const rawFsconfig = bindSyscall<[number, number, string | null, string | null, number]>("fsconfig", 431, [
  "int",
  "uint",
  "str",
  "str",
  "int",
]);
const rawFsmount = bindSyscall<[number, number, number]>("fsmount", 432, ["int", "uint", "uint"]);
const rawMountSetattr = bindSyscall<[number, string, number, Uint8Array, number]>("mount_setattr", 442, [
  "int",
  "str",
  "uint",
  "void *",
  "size_t",
]);
const rawMount = bind<[string, string, string, number, string]>("mount", ["str", "str", "str", "ulong", "str"]);
const rawUmount = bind<[string, number]>("umount2", ["str", "int"]);

/** What a new filesystem is made with: flags (true), strings, or descriptors, in this order. */
export type MountOption = readonly [name: string, value: true | string | number];

/** A detached mount of a new filesystem; gone when its descriptor is closed, unless it was attached. */
export function newMount(type: string, options: readonly MountOption[], attributes: number): number {
  const context = rawFsopen(type, 1 /* FSOPEN_CLOEXEC */);
  try {
    configure(context, options);
    rawFsconfig(context, FSCONFIG_CMD_CREATE, null, null, 0);
    return rawFsmount(context, 1 /* FSMOUNT_CLOEXEC */, attributes);
  } catch (error) {
    throw explained(error, type, context);
  } finally {
    closeSync(context);
  }
}

/** The same, for a filesystem on a block device: it is read, and marked as mounted, off the event loop. */
export async function newMountLater(
  type: string,
  options: readonly MountOption[],
  attributes: number,
): Promise<number> {
  const context = rawFsopen(type, 1 /* FSOPEN_CLOEXEC */);
  try {
    configure(context, options);
    await rawFsconfig.later(context, FSCONFIG_CMD_CREATE, null, null, 0);
    return rawFsmount(context, 1 /* FSMOUNT_CLOEXEC */, attributes);
  } catch (error) {
    throw explained(error, type, context);
  } finally {
    closeSync(context);
  }
}

function configure(context: number, options: readonly MountOption[]): void {
  for (const [name, value] of options) {
    if (value === true) rawFsconfig(context, FSCONFIG_SET_FLAG, name, null, 0);
    else if (typeof value === "string") rawFsconfig(context, FSCONFIG_SET_STRING, name, value, 0);
    else rawFsconfig(context, FSCONFIG_SET_FD, name, null, value);
  }
}

/** The kernel tells in the context's log what it did not like. */
function explained(error: unknown, type: string, context: number): unknown {
  if (!(error instanceof SyscallError)) return error;
  const buffer = Buffer.alloc(1024);
  let log = "";
  try {
    log = buffer.toString("utf8", 0, readSync(context, buffer)).trim();
  } catch {
    // ENODATA: no message.
  }
  return new SyscallError(error.call, error.errno, log === "" ? type : `${type} (${log})`);
}

/** A detached copy of the mount at a path (of that directory only, nothing mounted below it). */
export function cloneMount(path: string): number {
  return rawOpenTree(AT_FDCWD, path, OPEN_TREE_CLONE | O_CLOEXEC);
}

/** Makes a detached mount show its files' owners as a user namespace maps them: 0 becomes the range's base id. */
export function mapIds(mount: number, userNamespace: number): void {
  setAttributes(mount, MOUNT_ATTR_IDMAP, userNamespace);
}

/** Adds attributes to a detached mount. */
export function setAttributes(mount: number, attributes: number, userNamespace = 0): void {
  const words = new BigUint64Array([BigInt(attributes), 0n, 0n, BigInt(userNamespace)]);
  rawMountSetattr(mount, "", AT_EMPTY_PATH, new Uint8Array(words.buffer), words.byteLength);
}

/** Attaches a detached mount to a directory. */
export function attachMount(mount: number, path: string): void {
  rawMoveMount(mount, "", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH);
}

/** mount(2), with all options in one text of at most 4,095 bytes. */
export function mountLegacy(type: string, path: string, flags: number, options: string): void {
  rawMount(type, path, type, flags, options);
}

/** Unmounts now, failing with EBUSY while something is open there. EINVAL: nothing is mounted. */
export function unmount(path: string): void {
  rawUmount(path, UMOUNT_NOFOLLOW);
}

/** The same off the event loop: what was written may have to go to the disk first (6 ms and more). */
export function unmountLater(path: string): Promise<number> {
  return rawUmount.later(path, UMOUNT_NOFOLLOW);
}

/** Takes a mount out of sight at once; it ends when its last user does. */
export function detachMount(path: string): void {
  rawUmount(path, UMOUNT_NOFOLLOW | MNT_DETACH);
}
