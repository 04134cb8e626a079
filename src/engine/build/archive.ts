import { resolveIn, type Tree, type TreeEntry } from "../../build/tree.ts";
import { BerthError } from "../../core/errors.ts";
import { type ByteString, type LayerEntry, showBytes } from "../../image/layer-entry.ts";
import { readTar } from "../../image/tar-read.ts";
import type { Destination } from "./destination.ts";
import type { FileTree } from "./file-entry.ts";

const headerSize = 512;

/** The plain bytes of what may be compressed. */
export type Decompress = (content: AsyncIterable<Uint8Array>) => AsyncIterable<Uint8Array>;

/**
 * Whether ADD unpacks the file: a tar, plain or compressed, known by its bytes and not by its name. `open` may be called
 * twice.
 */
export async function isArchive(open: () => AsyncIterable<Uint8Array>, plain: Decompress): Promise<boolean> {
  try {
    return isTarHeader(await head(plain(open()), headerSize));
  } catch (error) {
    // Damaged, or compressed by chance: then it is a file like any other.
    if (error instanceof BerthError && error.code === "invalid_image") return false;
    throw error;
  }
}

/**
 * The entries of an archive, a plain tar, below `into`. Directories on the way are resolved in the root below and in what the archive
 * has brought so far, as tar does when it unpacks over a `lib` that is a link to `usr/lib`; never out of the root.
 * @throws BerthError `invalid_context` for names with `..` and for paths through files.
 */
export async function* unpack(
  content: AsyncIterable<Uint8Array>,
  into: ByteString,
  below: FileTree,
  destination: Destination,
  owner: { uid: number; gid: number } | null,
): AsyncGenerator<LayerEntry> {
  const links = new Map<ByteString, TreeEntry>();
  const tree: Tree<TreeEntry> = {
    get: async (path) => links.get(path) ?? (await below.get(path)),
    list: () => Promise.resolve([]),
  };
  for await (const entry of readTar(content)) {
    const parts = entry.path.split("/").filter((part) => part !== "" && part !== ".");
    if (parts.includes("..")) throw refused(entry.path, 'it has a ".."');
    const name = parts.at(-1);
    if (name === undefined || entry.type === "device") continue;
    if (entry.type === "directory") {
      const { path, blocked } = await resolveIn(tree, [into, ...parts].join("/"));
      if (blocked) throw refused(entry.path, "it leads through something that is no directory");
      yield* destination.described(path, { ...entry, ...owner });
      continue;
    }
    const parent = await resolveIn(tree, [into, ...parts.slice(0, -1)].join("/"));
    if (parent.blocked) throw refused(entry.path, "it leads through something that is no directory");
    yield* destination.directories(parent.path);
    const path = parent.path === "/" ? `/${name}` : `${parent.path}/${name}`;
    if (entry.type === "symlink") links.set(path, { type: "symlink", target: entry.target });
    else links.delete(path);
    const target = entry.type === "hardlink" ? `${into}/${entry.target}` : entry.target;
    yield { ...entry, ...owner, path: path.slice(1), target };
  }
}

function refused(path: ByteString, why: string): BerthError {
  return new BerthError("invalid_context", `The archive's entry ${showBytes(path)} is refused: ${why}.`);
}

function isTarHeader(block: Buffer): boolean {
  if (block.length < headerSize) return false;
  // The checksum counts its own field as eight spaces (POSIX pax, ustar header block).
  let sum = 8 * 0x20;
  for (const [index, byte] of block.entries()) if (index < 148 || index >= 156) sum += byte;
  return sum === Number.parseInt(block.toString("latin1", 148, 156).replace(/\0.*$/s, "").trim(), 8);
}

async function head(content: AsyncIterable<Uint8Array>, length: number): Promise<Buffer> {
  const parts: Uint8Array[] = [];
  let bytes = 0;
  for await (const part of content) {
    parts.push(part);
    bytes += part.length;
    if (bytes >= length) break;
  }
  return Buffer.concat(parts).subarray(0, length);
}
