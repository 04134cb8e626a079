import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import { hasCode, O_DIRECTORY, O_PATH, openat2, RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS } from "./apply/ffi.ts";
import { resolveUser, type User } from "./plan/user.ts";

/** Who the process runs as, by the account files of the image itself. */
export function userOf(rootfs: string, text: string): User {
  const root = openSync(rootfs, O_PATH | O_DIRECTORY);
  try {
    return resolveUser(text, readWithin(root, "etc/passwd"), readWithin(root, "etc/group"));
  } finally {
    closeSync(root);
  }
}

const accountFileLimit = 1 << 20;
const O_RDONLY_NONBLOCK = 0o4000;

/** A regular file of a tenant's root, resolved inside it; "" for anything else. */
function readWithin(root: number, path: string): string {
  let fd: number;
  try {
    fd = openat2(root, path, { flags: O_RDONLY_NONBLOCK, resolve: RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS });
  } catch (error) {
    if (hasCode(error, "ENOENT", "ENOTDIR", "ELOOP", "EACCES", "ENXIO", "ENODEV")) return "";
    throw error;
  }
  try {
    if (!fstatSync(fd).isFile()) return "";
    const buffer = Buffer.alloc(Math.min(fstatSync(fd).size, accountFileLimit));
    return buffer.toString("utf8", 0, readSync(fd, buffer, 0, buffer.length, 0));
  } finally {
    closeSync(fd);
  }
}
