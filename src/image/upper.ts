import {
  type BigIntStats,
  closeSync,
  constants,
  fstatSync,
  lstatSync,
  opendirSync,
  openSync,
  readdirSync,
  readlinkSync,
} from "node:fs";
import { open } from "node:fs/promises";
import { Pauses } from "../core/pauses.ts";
import { readXattrs } from "./file-xattrs.ts";
import { type ByteString, type LayerEntry, noContent } from "./layer-entry.ts";
import { defaultLimits, tooLarge } from "./layer-limits.ts";
import { keptXattrs, plainCapability } from "./layer-xattrs.ts";
import { openFlags, readSmallFile, smallFile } from "./small-file.ts";

const idCount = 65_536;
const nobody = 65_534;
const chunkSize = 1 << 20;
/** Bytes of a directory itself from which on its names are asked for in parts of so many: 100,000 names have 5 MB. */
const largeDirectory = 256 << 10;
const namesAtOnce = 512;
/** A directory that is being walked: its descriptor and the names that are still to come, last one first. */
export interface Level {
  fd: number;
  path: ByteString;
  names: ByteString[];
}

/**
 * What a container changed, as a layer: the overlay's upper directory in OCI's form. Whiteouts and opaque directories are
 * named as layer.md says, ids are shifted back from the container's range, overlayfs's own attributes are left out. The
 * order is bytewise, a directory before what is in it, so the same changes give the same layer. The root itself is not an
 * entry. Nothing may be changing the directory.
 *
 * The names and links in it are a tenant's: each level is opened from the one above without following links, and only
 * files are opened.
 *
 * @param idBase The host's id that is the container's 0.
 */
export async function* readUpper(directory: string, idBase: number): AsyncGenerator<LayerEntry, void, undefined> {
  const levels: Level[] = [];
  const linked = new Map<string, ByteString>();
  const pauses = new Pauses();
  try {
    levels.push(await enter(Buffer.from(directory), "", pauses));
    for (let level = levels.at(-1); level !== undefined; level = levels.at(-1)) {
      const name = level.names.pop();
      if (name === undefined) {
        closeSync(level.fd);
        levels.pop();
        continue;
      }
      await pauses.take();
      const file = within(level.fd, name);
      const path = join(level.path, name);
      const stat = lstatSync(file, { bigint: true });
      const xattrs = readXattrs(file);
      const entry = toEntry(file, path, stat, xattrs, idBase);
      if (entry === null) continue;
      if (entry.type === "file" && stat.nlink > 1n) {
        const key = `${String(stat.dev)}:${String(stat.ino)}`;
        const first = linked.get(key);
        if (first !== undefined) {
          yield { ...entry, type: "hardlink", target: first, size: 0, content: noContent };
          continue;
        }
        linked.set(key, path);
      }
      yield entry;
      if (entry.type !== "directory") continue;
      if (isOpaque(xattrs)) yield emptyFile(entry, join(path, ".wh..wh..opq"));
      if (levels.length >= defaultLimits.depth) throw tooLarge("directories that are too deep");
      levels.push(await enter(file, path, pauses));
    }
  } finally {
    for (const level of levels) closeSync(level.fd);
  }
}

/** Opens a directory, which must not be a link, and lists it: 100,000 names take 0.1 s, in which other work has its turns. */
export async function enter(file: Buffer, path: ByteString, pauses: Pauses): Promise<Level> {
  const fd = openSync(file, constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW);
  try {
    const here = within(fd, ".");
    const isLarge = fstatSync(fd).size > largeDirectory;
    const names = isLarge ? await namesInTurns(here, pauses) : readdirSync(here, { encoding: "latin1" });
    return { fd, path, names: names.sort().reverse() };
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}

async function namesInTurns(path: Buffer, pauses: Pauses): Promise<ByteString[]> {
  const names: ByteString[] = [];
  const directory = opendirSync(path, { encoding: "latin1", bufferSize: namesAtOnce });
  try {
    for (let next = directory.readSync(); next !== null; next = directory.readSync()) {
      if (names.push(next.name) % namesAtOnce === 0) await pauses.take();
    }
  } finally {
    directory.closeSync();
  }
  return names;
}

/** A path to a name in an open directory, wherever that has been moved to. */
export function within(fd: number, name: ByteString): Buffer {
  return Buffer.from(`/proc/self/fd/${String(fd)}/${name}`, "latin1");
}

export function join(parent: ByteString, name: ByteString): ByteString {
  return parent === "" ? name : `${parent}/${name}`;
}

/** null: what a layer can't hold, such as a socket. */
function toEntry(
  file: Buffer,
  path: ByteString,
  stat: BigIntStats,
  xattrs: ReadonlyMap<ByteString, Uint8Array>,
  idBase: number,
): LayerEntry | null {
  const entry: LayerEntry = {
    path,
    type: "file",
    mode: Number(stat.mode) & 0o7777,
    uid: shiftedBack(stat.uid, idBase),
    gid: shiftedBack(stat.gid, idBase),
    mtime: splitTime(stat.mtimeNs),
    size: 0,
    target: "",
    xattrs: layerXattrs(xattrs, idBase),
    content: noContent,
  };
  if (stat.isDirectory()) return { ...entry, type: "directory" };
  if (stat.isSymbolicLink()) {
    return { ...entry, type: "symlink", target: readlinkSync(file, { encoding: "buffer" }).toString("latin1") };
  }
  if (stat.isFIFO()) return { ...entry, type: "fifo" };
  if (isWhiteout(stat)) {
    const slash = path.lastIndexOf("/") + 1;
    return emptyFile(entry, `${path.slice(0, slash)}.wh.${path.slice(slash)}`);
  }
  if (!stat.isFile()) return null;
  const size = Number(stat.size);
  return { ...entry, size, content: size <= smallFile ? smallContent(file, size) : content(file, size) };
}

/** Read when it is asked for: only one file at a time is in memory. */
function* smallContent(file: Buffer, size: number): Generator<Uint8Array, void, undefined> {
  if (size > 0) yield readSmallFile(file, size);
}

async function* content(file: Buffer, size: number): AsyncGenerator<Uint8Array, void, undefined> {
  const handle = await open(file, openFlags);
  try {
    for (let position = 0; position < size; ) {
      const buffer = Buffer.allocUnsafe(Math.min(size - position, chunkSize));
      const { bytesRead } = await handle.read(buffer, 0, buffer.length, position);
      if (bytesRead === 0) return;
      position += bytesRead;
      yield buffer.subarray(0, bytesRead);
    }
  } finally {
    await handle.close();
  }
}

function emptyFile(like: LayerEntry, path: ByteString): LayerEntry {
  return { ...like, path, type: "file", mode: 0o600, uid: 0, gid: 0, size: 0, xattrs: new Map(), content: noContent };
}

function shiftedBack(id: bigint, idBase: number): number {
  const shifted = Number(id) - idBase;
  return shifted >= 0 && shifted < idCount ? shifted : nobody;
}

function splitTime(ns: bigint): LayerEntry["mtime"] {
  const nanoseconds = ((ns % 1_000_000_000n) + 1_000_000_000n) % 1_000_000_000n;
  return { seconds: Number((ns - nanoseconds) / 1_000_000_000n), nanoseconds: Number(nanoseconds) };
}

/** Whether a file of an upper says that there is none. */
export function isWhiteout(stat: BigIntStats): boolean {
  return stat.isCharacterDevice() && stat.rdev === 0n;
}

/** Whether a directory of an upper stands in place of the one below it. */
export function isOpaque(xattrs: ReadonlyMap<ByteString, Uint8Array>): boolean {
  const value = xattrs.get("trusted.overlay.opaque");
  return value !== undefined && Buffer.from(value).toString() === "y";
}

function layerXattrs(xattrs: ReadonlyMap<ByteString, Uint8Array>, idBase: number): ReadonlyMap<ByteString, Uint8Array> {
  // With these features on, the directory would not hold all of the change; Berth mounts without them.
  if (xattrs.has("trusted.overlay.redirect") || xattrs.has("trusted.overlay.metacopy")) {
    throw new Error("the overlay was mounted with redirect_dir or metacopy");
  }
  const value = xattrs.get("security.capability");
  if (value === undefined) return keptXattrs(xattrs);
  const plain = plainCapability(value, idBase);
  const rest = new Map(xattrs);
  if (plain === null) rest.delete("security.capability");
  else rest.set("security.capability", plain);
  return keptXattrs(rest);
}
