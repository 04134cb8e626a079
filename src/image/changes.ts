import { closeSync, constants, lstatSync, openSync } from "node:fs";
import { Pauses } from "../core/pauses.ts";
import { readXattrs } from "./file-xattrs.ts";
import { defaultLimits } from "./layer-limits.ts";
import { enter, isOpaque, isWhiteout, join, type Level, within } from "./upper.ts";

/** A path that a container has and its image lacks, or differently, or the reverse. */
export interface Change {
  /** From the root, bytes that are no UTF-8 replaced. */
  path: string;
  kind: "added" | "modified" | "deleted";
}

/** The same directory in the upper and, if the image has it as a directory too, in the image. */
interface Pair {
  upper: Level;
  lower: number | null;
}

/**
 * What a container changed, by its overlay's upper directory and a view of its image's layers; a directory comes before
 * what is in it, and is modified when anything in it is. The container may go on meanwhile: what is gone when it is
 * looked at is left out. As with readUpper, no link of the tenant's is ever followed, in neither tree.
 */
export async function* readChanges(upper: string, image: string): AsyncGenerator<Change, void, undefined> {
  const pairs: Pair[] = [];
  const pauses = new Pauses();
  try {
    const root = await orNull(() => enter(Buffer.from(upper), "", pauses));
    if (root !== null) pairs.push({ upper: root, lower: await openDirectory(Buffer.from(image)) });
    for (let pair = pairs.at(-1); pair !== undefined; pair = pairs.at(-1)) {
      const name = pair.upper.names.pop();
      if (name === undefined) {
        close(pair);
        pairs.pop();
        continue;
      }
      await pauses.take();
      const file = within(pair.upper.fd, name);
      const stat = lstatSync(file, { bigint: true, throwIfNoEntry: false });
      if (stat === undefined) continue;
      const path = join(pair.upper.path, name);
      const below = pair.lower === null ? null : within(pair.lower, name);
      const inImage = below !== null && lstatSync(below, { throwIfNoEntry: false }) !== undefined;
      const kind = isWhiteout(stat) ? "deleted" : inImage ? "modified" : "added";
      yield { path: `/${Buffer.from(path, "latin1").toString("utf8")}`, kind };
      if (!stat.isDirectory() || pairs.length >= defaultLimits.depth) continue;
      const directory = await orNull(() => enter(file, path, pauses));
      if (directory === null) continue;
      // An opaque directory stands in place of the image's.
      const hides = below === null || isOpaque(readXattrs(within(directory.fd, ".")));
      pairs.push({ upper: directory, lower: hides ? null : await openDirectory(below) });
    }
  } finally {
    for (const pair of pairs) close(pair);
  }
}

async function openDirectory(path: Buffer): Promise<number | null> {
  return orNull(() => openSync(path, constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW));
}

/** null: there is no such directory, or no more. */
async function orNull<T>(opened: () => T | Promise<T>): Promise<T | null> {
  try {
    return await opened();
  } catch (error) {
    if (["ENOENT", "ENOTDIR", "ELOOP"].includes((error as NodeJS.ErrnoException).code ?? "")) return null;
    throw error;
  }
}

function close({ upper, lower }: Pair): void {
  closeSync(upper.fd);
  if (lower !== null) closeSync(lower);
}
