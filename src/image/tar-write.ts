import type { LayerEntry } from "./layer-entry.ts";
import { blockSize, formatHeader, paddingOf, type TarHeader, ustarLimits } from "./tar-header.ts";
import { formatPax, type PaxOverrides } from "./tar-pax.ts";

/** Files of up to so many bytes are given in one piece with their headers: each piece costs its way through the stream. */
const smallContent = 16 << 10;
const zeros = Buffer.alloc(2 * blockSize);

const typeFlags = { file: "0", hardlink: "1", symlink: "2", directory: "5", fifo: "6" } as const;

/**
 * Writes entries as a tar: ustar headers, with a pax header only for what they can't hold. The same entries give the
 * same bytes. Devices are left out: Berth's layers hold none.
 * @throws RangeError when a file's content is not `size` bytes long.
 */
export async function* writeTar(
  entries: AsyncIterable<LayerEntry> | Iterable<LayerEntry>,
): AsyncGenerator<Uint8Array, void, undefined> {
  for await (const entry of entries) {
    if (entry.type === "device") continue;
    let parts: Uint8Array[] = formatHeaders(entry, typeFlags[entry.type]);
    if (entry.type === "file") {
      let written = 0;
      for await (const chunk of entry.content) {
        written += chunk.length;
        parts.push(chunk);
        if (entry.size <= smallContent && written <= entry.size) continue;
        yield* parts;
        parts = [];
      }
      if (written !== entry.size) {
        throw new RangeError(`an entry of ${String(entry.size)} bytes had ${String(written)} bytes of content`);
      }
      const padding = paddingOf(written);
      if (padding > 0) parts.push(zeros.subarray(0, padding));
    }
    if (parts.length > 0) yield Buffer.concat(parts);
  }
  yield zeros;
}

function formatHeaders(entry: LayerEntry, typeFlag: string): Buffer[] {
  const name = entry.type === "directory" && !entry.path.endsWith("/") ? `${entry.path}/` : entry.path;
  const header: TarHeader = {
    name,
    mode: entry.mode & 0o7777,
    uid: entry.uid,
    gid: entry.gid,
    size: entry.type === "file" ? entry.size : 0,
    mtime: entry.mtime.seconds,
    typeFlag,
    linkName: entry.target,
  };
  const pax: PaxOverrides = {};
  if (name.length > ustarLimits.name) {
    pax.path = name;
    header.name = name.slice(0, ustarLimits.name);
  }
  if (entry.target.length > ustarLimits.linkName) {
    pax.linkpath = entry.target;
    header.linkName = entry.target.slice(0, ustarLimits.linkName);
  }
  for (const key of ["uid", "gid"] as const) {
    if (header[key] > ustarLimits.id) {
      pax[key] = header[key];
      header[key] = 0;
    }
  }
  if (header.size > ustarLimits.size) {
    pax.size = header.size;
    header.size = 0;
  }
  if (entry.mtime.nanoseconds !== 0 || header.mtime < 0 || header.mtime > ustarLimits.mtime) {
    pax.mtime = entry.mtime;
    header.mtime = header.mtime < 0 || header.mtime > ustarLimits.mtime ? 0 : header.mtime;
  }
  if (entry.xattrs.size > 0) pax.xattrs = new Map(entry.xattrs);
  if (Object.keys(pax).length === 0) return [formatHeader(header)];
  const records = formatPax(pax);
  const extension: TarHeader = {
    name: `PaxHeaders/${name}`.slice(0, ustarLimits.name).replace(/\/+$/, ""),
    mode: 0o644,
    uid: 0,
    gid: 0,
    size: records.length,
    mtime: 0,
    typeFlag: "x",
    linkName: "",
  };
  return [formatHeader(extension), records, Buffer.alloc(paddingOf(records.length)), formatHeader(header)];
}
