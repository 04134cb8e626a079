import type { IncomingMessage } from "node:http";
import type { Readable } from "node:stream";
import { BerthError } from "../core/errors.ts";
import type { ByteRange, StoredBlob } from "./blobs.ts";
import { readBody } from "./http.ts";
import { Transient } from "./retry.ts";

/** A blob to send; `open` gives its bytes from `start` to `end`, both included, and may be called again. */
export interface OutgoingBlob extends StoredBlob {
  open: (range: ByteRange) => Promise<Readable>;
}

/** Where blobs are kept on other machines: reached by HTTP, which breaks. What passes by itself is tried again here. */
export interface FarBlobs {
  /** Bytes of a blob; null when it is not there. @throws BerthError `blob_store_error` */
  size(digest: string): Promise<number | null>;
  /** One attempt at a blob's bytes, from `start` on; null: it is not there. @throws BerthError, or `Transient` */
  read(digest: string, range: ByteRange, signal: AbortSignal): Promise<IncomingMessage | null>;
  /** Stores a blob that was verified. @throws BerthError `blob_store_error`, `disk_full` */
  send(blob: OutgoingBlob): Promise<void>;
}

/** A failure that may pass. `what` completes "The blob store …". */
export function passing(what: string, cause?: unknown): Transient {
  return new Transient(new BerthError("blob_store_error", `The blob store ${what}.`, { cause }));
}

/** A network's error as one that may pass; what is ours stays as it is. */
export function passingUnlessOurs(error: unknown, signal: AbortSignal): unknown {
  if (signal.aborted || error instanceof BerthError || error instanceof Transient) return error;
  const why = error instanceof Error ? error.message : String(error);
  return passing(`can't be reached: ${why}`, error);
}

/** What a status that is no success stands for: a lasting error, or one that may pass. */
type Failure = (response: IncomingMessage) => Promise<BerthError | Transient>;

/** What HEAD was answered: the blob's size, or that there is none. */
export async function answeredSize(response: IncomingMessage, failure: Failure): Promise<number | null> {
  response.resume();
  if (response.statusCode === 404) return null;
  if (response.statusCode !== 200) throw await failure(response);
  return Number(response.headers["content-length"]);
}

/** The header that asks for the range; none for the whole blob. */
export function rangeHeader({ start, end }: ByteRange): { range?: string } {
  if (start === 0 && end === undefined) return {};
  return { range: `bytes=${String(start)}-${end === undefined ? "" : String(end)}` };
}

/** What GET was answered with that header: the bytes, and no others than were asked for, or that there is no blob. */
export async function answeredBytes(
  response: IncomingMessage,
  asked: { range?: string },
  failure: Failure,
): Promise<IncomingMessage | null> {
  if (response.statusCode === (asked.range === undefined ? 200 : 206)) return response;
  if (response.statusCode !== 404) throw await failure(response);
  response.resume();
  return null;
}

/** The text of an answer that is no success; nothing of it when it is long or breaks off. */
export async function answeredText(response: IncomingMessage): Promise<string> {
  const bytes = await readBody(response, 64 << 10).catch(() => null);
  response.destroy();
  return bytes?.toString("utf8") ?? "";
}
