import { BerthError } from "../core/errors.ts";
import type { ByteString } from "./layer-entry.ts";

export const blockSize = 512;

/** The fields of a tar header block (POSIX.1-2017 pax, ustar; GNU tar's basic format), before extended headers. */
export interface TarHeader {
  name: ByteString;
  mode: number;
  uid: number;
  gid: number;
  size: number;
  mtime: number;
  /** One character; `0` also for the old NUL. */
  typeFlag: string;
  linkName: ByteString;
}

export function invalidTar(what: string): BerthError {
  return new BerthError("invalid_image", `The tar is damaged: ${what}.`);
}

/** Decodes a header. null: a block of zeros, which ends the archive. @throws BerthError `invalid_image`. */
export function parseHeader(block: Buffer): TarHeader | null {
  const stored = parseNumber(block, 148, 8, "checksum");
  const { unsigned, signed } = checksums(block);
  if (unsigned === 8 * 0x20 && stored === 0) return null;
  if (stored !== unsigned && stored !== signed) throw invalidTar("the checksum of a header is wrong");
  let name = parseString(block, 0, 100);
  if (block.toString("latin1", 257, 263) === "ustar\0") {
    // star keeps times in the last 24 bytes of the prefix field and says so at its end.
    const prefix = parseString(block, 345, block.toString("latin1", 508, 512) === "tar\0" ? 131 : 155);
    if (prefix !== "") name = `${prefix}/${name}`;
  }
  const flag = block[156] ?? 0;
  return {
    name,
    mode: parseNumber(block, 100, 8, "mode"),
    uid: parseNumber(block, 108, 8, "uid"),
    gid: parseNumber(block, 116, 8, "gid"),
    size: parseNumber(block, 124, 12, "size"),
    mtime: parseNumber(block, 136, 12, "mtime"),
    typeFlag: flag === 0 ? "0" : String.fromCharCode(flag),
    linkName: parseString(block, 157, 100),
  };
}

/** Whether every field fits plain ustar; a pax header must carry those that do not. */
export const ustarLimits = { name: 100, linkName: 100, id: 0o7777777, size: 0o77777777777, mtime: 0o77777777777 };

/** Encodes a ustar header. Every field must fit (`ustarLimits`). */
export function formatHeader(header: TarHeader): Buffer {
  const block = Buffer.alloc(blockSize);
  block.write(header.name, 0, 100, "latin1");
  writeOctal(block, 100, 8, header.mode);
  writeOctal(block, 108, 8, header.uid);
  writeOctal(block, 116, 8, header.gid);
  writeOctal(block, 124, 12, header.size);
  writeOctal(block, 136, 12, header.mtime);
  block.write(header.typeFlag, 156, 1, "latin1");
  block.write(header.linkName, 157, 100, "latin1");
  block.write("ustar\x0000", 257, 8, "latin1");
  writeOctal(block, 329, 8, 0);
  writeOctal(block, 337, 8, 0);
  writeOctal(block, 148, 7, checksums(block).unsigned);
  block[155] = 0x20;
  return block;
}

/** Bytes up to the next block boundary. */
export function paddingOf(size: number): number {
  return (blockSize - (size % blockSize)) % blockSize;
}

function parseString(block: Buffer, offset: number, length: number): ByteString {
  const end = block.indexOf(0, offset);
  return block.toString("latin1", offset, end < 0 || end > offset + length ? offset + length : end);
}

/** Octal text, or GNU's base-256 when the first bit is set (two's complement, big endian). */
function parseNumber(block: Buffer, offset: number, length: number, field: string): number {
  const first = block[offset] ?? 0;
  if ((first & 0x80) === 0) return parseOctal(block, offset, offset + length, field);
  let value = (first & 0x40) === 0 ? BigInt(first & 0x3f) : BigInt(first & 0x3f) - 0x40n;
  for (let i = 1; i < length; i++) value = (value << 8n) | BigInt(block[offset + i] ?? 0);
  if (value > BigInt(Number.MAX_SAFE_INTEGER) || value < BigInt(Number.MIN_SAFE_INTEGER)) {
    throw invalidTar(`the ${field} of a header is too large`);
  }
  return Number(value);
}

/** Digits with spaces or NULs before and after them; none at all is 0. Byte by byte: each entry has six of these. */
function parseOctal(block: Buffer, start: number, end: number, field: string): number {
  let at = start;
  let last = end;
  const isBlank = (byte: number | undefined): boolean => byte === 0x20 || byte === 0;
  while (at < last && isBlank(block[at])) at++;
  while (last > at && isBlank(block[last - 1])) last--;
  let value = 0;
  for (; at < last; at++) {
    const digit = (block[at] ?? 0) - 0x30;
    if (digit < 0 || digit > 7) throw invalidTar(`the ${field} of a header is not a number`);
    value = value * 8 + digit;
  }
  return value;
}

/** Digits with zeros before them, and a NUL. Byte by byte, as they are read. */
function writeOctal(block: Buffer, offset: number, length: number, value: number): void {
  let left = value;
  for (let at = offset + length - 2; at >= offset; at--) {
    block[at] = 0x30 + (left % 8);
    left = Math.floor(left / 8);
  }
}

/** Sums over the block with its checksum field read as spaces; some old writers summed signed characters. */
function checksums(block: Buffer): { unsigned: number; signed: number } {
  let unsigned = 8 * 0x20;
  let high = 0;
  for (let i = 0; i < blockSize; i++) {
    if (i === 148) i = 156;
    const byte = block[i] ?? 0;
    unsigned += byte;
    if (byte > 127) high++;
  }
  return { unsigned, signed: unsigned - high * 256 };
}
