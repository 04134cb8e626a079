/**
 * A byte string: each character is one byte (0–255), so that names that are not UTF-8 stay exact, compare bytewise
 * with `<`, and cost one byte a character in V8. Names, paths and link targets of layers are byte strings.
 */
export type ByteString = string;

/** The bytes of a text in UTF-8 as a byte string; the same string when it is ASCII. */
export function toByteString(text: string): ByteString {
  return Buffer.from(text, "utf8").toString("latin1");
}

/** A byte string as text, for messages; bytes that are not UTF-8 show as U+FFFD. */
export function showBytes(bytes: ByteString): string {
  return JSON.stringify(Buffer.from(bytes.slice(0, 300), "latin1").toString("utf8"));
}

/** Nanoseconds are 0–999,999,999 and always count forward, also before 1970. */
export interface Timestamp {
  seconds: number;
  nanoseconds: number;
}

/** A time as stat gives it, in nanoseconds since 1970. */
export function timestampOf(ns: bigint): Timestamp {
  const nanoseconds = Number(ns % 1_000_000_000n);
  const seconds = Number(ns / 1_000_000_000n);
  return nanoseconds < 0
    ? { seconds: seconds - 1, nanoseconds: nanoseconds + 1_000_000_000 }
    : { seconds, nanoseconds };
}

export type EntryType = "file" | "directory" | "symlink" | "hardlink" | "fifo" | "device";

/**
 * One entry of a layer in the order and the form of its tar (OCI image spec v1.1, layer.md): a whiteout is a file named
 * `.wh.<name>`, an opaque directory has a file `.wh..wh..opq`.
 */
export interface LayerEntry {
  /** Components separated by `/`; a leading `/` or `./` means nothing, `..` is refused. */
  path: ByteString;
  type: EntryType;
  /** Permission bits with setuid, setgid and sticky: 0–0o7777. */
  mode: number;
  uid: number;
  gid: number;
  mtime: Timestamp;
  /** Bytes of `content`; 0 unless it is a file. */
  size: number;
  /** A symlink's target as it is, a hardlink's as a path within the layer; otherwise empty. */
  target: ByteString;
  xattrs: ReadonlyMap<ByteString, Uint8Array>;
  /** A file's bytes, to be read once and before the next entry is asked for. */
  content: AsyncIterable<Uint8Array> | Iterable<Uint8Array>;
}

export const noXattrs: ReadonlyMap<ByteString, Uint8Array> = new Map();
export const noContent: Iterable<Uint8Array> = [];
