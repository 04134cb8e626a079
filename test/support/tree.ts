import { createHash } from "node:crypto";
import {
  type BigIntStats,
  closeSync,
  constants,
  lstatSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
} from "node:fs";
import { readXattrs } from "../../src/image/file-xattrs.ts";

/** What is compared of a file; `links` are the other names of the same inode, in order. */
export type TreeListing = Record<string, string>;

/**
 * Describes every file under a directory by its name (bytes as latin1): type, mode, ids, time, link count, target, xattrs
 * and content. Goes down by descriptors, so that depth is not bounded by PATH_MAX.
 */
export function listTree(
  directory: string,
  options: { skipTimes?: boolean; keep?: (xattr: string) => boolean; idBase?: number } = {},
): TreeListing {
  const listing: TreeListing = {};
  const walk = (at: Buffer, prefix: string): void => {
    const fd = openSync(at, constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW);
    try {
      const base = Buffer.from(`/proc/self/fd/${String(fd)}/`);
      for (const name of readdirSync(base, { encoding: "buffer" })) {
        const file = Buffer.concat([base, name]);
        const path = prefix + name.toString("latin1");
        const stat = lstatSync(file, { bigint: true });
        listing[path] = describe(file, stat, options);
        if (stat.isDirectory()) walk(file, `${path}/`);
      }
    } finally {
      closeSync(fd);
    }
  };
  walk(Buffer.from(directory), "");
  return listing;
}

function describe(
  file: Buffer,
  stat: BigIntStats,
  options: { skipTimes?: boolean; keep?: (xattr: string) => boolean; idBase?: number },
): string {
  const base = BigInt(options.idBase ?? 0);
  const xattrs = [...readXattrs(file)]
    .filter(([name]) => options.keep?.(name) ?? true)
    .map(([name, value]) => `${name}=${Buffer.from(value).toString("hex")}`)
    .sort();
  const type = stat.isDirectory() ? "d" : stat.isSymbolicLink() ? "l" : stat.isFile() ? "f" : stat.isFIFO() ? "p" : "o";
  return [
    type,
    (stat.mode & 0o7777n).toString(8),
    `${String(stat.uid - base)}:${String(stat.gid - base)}`,
    options.skipTimes === true ? "" : String(stat.mtimeNs),
    type === "d" ? "" : `links ${String(stat.nlink)}`,
    type === "f" ? String(stat.size) : "",
    type === "l" ? readlinkSync(file, { encoding: "buffer" }).toString("latin1") : "",
    type === "f" ? createHash("sha256").update(readFileSync(file)).digest("hex").slice(0, 16) : "",
    type === "o" ? `device ${String(stat.rdev)}` : "",
    ...xattrs,
  ].join(" ");
}
