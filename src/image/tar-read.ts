import { BerthError } from "../core/errors.ts";
import { ByteReader } from "./byte-reader.ts";
import { type ByteString, type EntryType, type LayerEntry, noContent, noXattrs } from "./layer-entry.ts";
import { blockSize, invalidTar, paddingOf, parseHeader, type TarHeader } from "./tar-header.ts";
import { type PaxOverrides, parsePax } from "./tar-pax.ts";

/** The largest extended header or long name that is read; the kernel's limit for one xattr's value is 64 KiB. */
const maxExtensionBytes = 1 << 20;

const types: Readonly<Record<string, EntryType>> = {
  "0": "file",
  "7": "file",
  "1": "hardlink",
  "2": "symlink",
  "3": "device",
  "4": "device",
  "5": "directory",
  "6": "fifo",
};

/**
 * Reads a tar (v7, ustar, pax, GNU) entry by entry, names and values exact to the byte. An entry's content that was not
 * read is skipped. Reads the stream to its end, also past the end of the archive, so that whoever hashes it sees all.
 * When an entry comes, the reader's position is where its content begins.
 * @throws BerthError `invalid_image` when it is damaged, ends early, or holds sparse files.
 */
export async function* readTar(
  source: AsyncIterable<Uint8Array> | ByteReader,
): AsyncGenerator<LayerEntry, void, undefined> {
  const reader = source instanceof ByteReader ? source : new ByteReader(source);
  try {
    for (;;) {
      const head = await readHeaders(reader);
      if (head === null) break;
      const entry = toEntry(head.header, head.pax);
      const left = { bytes: entry.size };
      if (entry.size > 0) entry.content = content(reader, left);
      yield entry;
      const skipped = left.bytes + paddingOf(entry.size);
      if (skipped > 0 && reader.tryRead(skipped) === undefined) await skip(reader, skipped);
    }
    while ((await reader.readSome(1 << 20)) !== null);
  } finally {
    await reader.close();
  }
}

/** The next entry's header with all extended headers before it; null at the end of the archive. */
async function readHeaders(reader: ByteReader): Promise<{ header: TarHeader; pax: PaxOverrides } | null> {
  let pax: PaxOverrides = {};
  let longName: ByteString | undefined;
  let longLink: ByteString | undefined;
  for (;;) {
    const block = reader.tryRead(blockSize) ?? (await reader.read(blockSize));
    if (block.length === 0) return null;
    if (block.length < blockSize) throw invalidTar("it ends within a header");
    const header = parseHeader(block);
    if (header === null) return null;
    switch (header.typeFlag) {
      case "x":
        pax = parsePax(await readExtension(reader, header.size));
        break;
      // Global headers carry comments (git archive); container tools give them no effect.
      case "g":
        await readExtension(reader, header.size);
        break;
      case "L":
        longName = untilNul(await readExtension(reader, header.size));
        break;
      case "K":
        longLink = untilNul(await readExtension(reader, header.size));
        break;
      default:
        header.name = pax.path ?? longName ?? header.name;
        header.linkName = pax.linkpath ?? longLink ?? header.linkName;
        return { header, pax };
    }
  }
}

function toEntry(header: TarHeader, pax: PaxOverrides): LayerEntry {
  let type = types[header.typeFlag];
  if (header.typeFlag === "S") throw invalidTar("sparse files are not supported");
  if (type === undefined) throw invalidTar(`it has an entry of the unknown type ${JSON.stringify(header.typeFlag)}`);
  // v7 has no type for directories.
  if (type === "file" && header.name.endsWith("/")) type = "directory";
  // As in Go's archive/tar, which all container tools use: only files have content, whatever size says.
  const size = type === "file" ? (pax.size ?? header.size) : 0;
  if (size < 0) throw invalidTar("an entry has a negative size");
  return {
    path: header.name,
    type,
    mode: header.mode & 0o7777,
    uid: pax.uid ?? header.uid,
    gid: pax.gid ?? header.gid,
    mtime: pax.mtime ?? { seconds: header.mtime, nanoseconds: 0 },
    size,
    target: type === "symlink" || type === "hardlink" ? header.linkName : "",
    xattrs: pax.xattrs ?? noXattrs,
    content: noContent,
  };
}

async function* content(reader: ByteReader, left: { bytes: number }): AsyncGenerator<Buffer, void, undefined> {
  while (left.bytes > 0) {
    const part = await reader.readSome(left.bytes);
    if (part === null) throw invalidTar("it ends within a file");
    left.bytes -= part.length;
    yield part;
  }
}

async function skip(reader: ByteReader, length: number): Promise<void> {
  for (let left = length; left > 0; ) {
    const part = await reader.readSome(left);
    if (part === null) throw invalidTar("it ends within a file");
    left -= part.length;
  }
}

async function readExtension(reader: ByteReader, size: number): Promise<Buffer> {
  if (size < 0 || size > maxExtensionBytes) {
    throw new BerthError("layer_too_large", "The tar has an extended header of more than 1 MiB.");
  }
  const data = Buffer.from(await reader.read(size));
  if (data.length < size) throw invalidTar("it ends within an extended header");
  await skip(reader, paddingOf(size));
  return data;
}

function untilNul(data: Buffer): ByteString {
  const end = data.indexOf(0);
  return data.toString("latin1", 0, end < 0 ? data.length : end);
}
