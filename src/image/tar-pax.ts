import type { ByteString, Timestamp } from "./layer-entry.ts";
import { invalidTar } from "./tar-header.ts";

/** What a pax extended header overrides (POSIX.1-2017 pax, "pax Extended Header"); absent: the header's value. */
export interface PaxOverrides {
  path?: ByteString;
  linkpath?: ByteString;
  size?: number;
  uid?: number;
  gid?: number;
  mtime?: Timestamp;
  xattrs?: Map<ByteString, Uint8Array>;
}

const xattrPrefix = "SCHILY.xattr.";

/**
 * Parses `<length> <key>=<value>\n` records. Works on bytes, because values such as `security.capability` are binary.
 * @throws BerthError `invalid_image` for malformed records and for GNU sparse files, whose content is not what it seems.
 */
export function parsePax(data: Buffer): PaxOverrides {
  const overrides: PaxOverrides = {};
  for (let offset = 0; offset < data.length; ) {
    const space = data.indexOf(0x20, offset);
    const length = space > offset && space - offset < 12 ? Number(data.toString("latin1", offset, space)) : Number.NaN;
    const end = offset + length;
    if (!Number.isSafeInteger(length) || end > data.length || end <= space + 1 || data[end - 1] !== 0x0a) {
      throw invalidTar("a pax record has a wrong length");
    }
    const equals = data.indexOf(0x3d, space);
    if (equals < 0 || equals >= end) throw invalidTar("a pax record has no value");
    applyRecord(overrides, data.toString("latin1", space + 1, equals), data.subarray(equals + 1, end - 1));
    offset = end;
  }
  return overrides;
}

function applyRecord(overrides: PaxOverrides, key: string, value: Buffer): void {
  if (key.startsWith(xattrPrefix)) {
    overrides.xattrs ??= new Map();
    overrides.xattrs.set(key.slice(xattrPrefix.length), Buffer.from(value));
  } else if (key.startsWith("GNU.sparse.")) {
    throw invalidTar("sparse files are not supported");
  } else if (key === "path" || key === "linkpath") {
    if (value.includes(0)) throw invalidTar(`the pax ${key} has a NUL`);
    if (value.length > 0) overrides[key] = value.toString("latin1");
  } else if (key === "size" || key === "uid" || key === "gid") {
    if (value.length > 0) overrides[key] = parseCount(key, value.toString("latin1"));
  } else if (key === "mtime") {
    if (value.length > 0) overrides.mtime = parseTime(value.toString("latin1"));
  }
}

function parseCount(key: string, text: string): number {
  const value = /^\d{1,16}$/.test(text) ? Number(text) : Number.NaN;
  if (!Number.isSafeInteger(value)) throw invalidTar(`the pax ${key} is not a number`);
  return value;
}

/** A decimal number of seconds, possibly negative and with any number of digits after the point. */
export function parseTime(text: string): Timestamp {
  const match = /^(-?)(\d{1,15})(?:\.(\d*))?$/.exec(text);
  if (match === null) throw invalidTar("the pax mtime is not a time");
  const seconds = Number(match[2]);
  const nanoseconds = Number((match[3] ?? "").slice(0, 9).padEnd(9, "0"));
  if (match[1] === "") return { seconds, nanoseconds };
  return nanoseconds === 0
    ? { seconds: seconds === 0 ? 0 : -seconds, nanoseconds }
    : { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds };
}

/** The inverse of `parseTime`, without trailing zeros. */
export function formatTime({ seconds, nanoseconds }: Timestamp): string {
  if (nanoseconds === 0) return String(seconds);
  const digits = (count: number): string => String(count).padStart(9, "0").replace(/0+$/, "");
  if (seconds >= 0) return `${String(seconds)}.${digits(nanoseconds)}`;
  return `-${String(-seconds - 1)}.${digits(1_000_000_000 - nanoseconds)}`;
}

/** The records of an extended header, in the order of their keys. */
export function formatPax(overrides: PaxOverrides): Buffer {
  const records = new Map<string, Uint8Array>();
  const text = (key: string, value: string | undefined): void => {
    if (value !== undefined) records.set(key, Buffer.from(value, "latin1"));
  };
  text("path", overrides.path);
  text("linkpath", overrides.linkpath);
  text("size", overrides.size?.toString());
  text("uid", overrides.uid?.toString());
  text("gid", overrides.gid?.toString());
  text("mtime", overrides.mtime === undefined ? undefined : formatTime(overrides.mtime));
  for (const [name, value] of overrides.xattrs ?? []) records.set(xattrPrefix + name, value);
  return Buffer.concat([...records.keys()].sort().map((key) => formatRecord(key, records.get(key) ?? Buffer.alloc(0))));
}

/** The length counts its own digits. */
function formatRecord(key: string, value: Uint8Array): Buffer {
  const rest = 1 + key.length + 1 + value.length + 1;
  let length = rest + String(rest).length;
  if (String(length).length > String(rest).length) length++;
  return Buffer.concat([Buffer.from(`${String(length)} ${key}=`, "latin1"), value, Buffer.from("\n")]);
}
