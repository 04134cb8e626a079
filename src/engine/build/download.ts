import { createHash } from "node:crypto";
import { type FileHandle, open, unlink } from "node:fs/promises";
import type { IncomingMessage } from "node:http";
import type { KnownFile } from "../../core/build-request.ts";
import { BerthError } from "../../core/errors.ts";
import type { HttpClient } from "../../image/http.ts";

const maxRedirects = 10;
/** What one file may take. */
export const downloadLimits = { bytes: 4 * 2 ** 30, milliseconds: 10 * 60_000 };

/** A downloaded file: its content is in `file`, which has no name. */
export interface Download extends KnownFile {
  file: FileHandle;
  /** The server can be asked later whether this is still what it has. */
  comparable: boolean;
}

/** A time says that nothing has changed only if it was that old when it was told (RFC 9110, 8.8.2.2). */
const oldEnoughSeconds = 60;

/**
 * Downloads a file by http(s) into one at `path`, which is unlinked at once. Redirects are followed, never away from
 * https; every address is checked as it is connected to.
 * @throws BerthError `download_failed`, `invalid_context` when the server refuses or the file is too large,
 *   `address_refused`; the signal's reason
 */
export async function download(
  url: string,
  path: string,
  http: HttpClient,
  signal: AbortSignal,
  limits = downloadLimits,
): Promise<Download> {
  const found = await downloadUnless(null, url, path, http, signal, limits);
  if (found === null) throw new Error("a file was compared with none");
  return found;
}

/** Downloads a file as `download` does. null: its server says that it still has the known one. */
export async function downloadUnless(
  known: KnownFile | null,
  url: string,
  path: string,
  http: HttpClient,
  signal: AbortSignal,
  limits = downloadLimits,
): Promise<Download | null> {
  const timeout = AbortSignal.timeout(limits.milliseconds);
  const both = AbortSignal.any([signal, timeout]);
  const file = await open(path, "wx+", 0o600);
  try {
    await unlink(path);
    const response = await follow(new URL(url), http, both, known);
    if (response === null) {
      await file.close();
      return null;
    }
    const content = await store(response, file, url, limits.bytes);
    return { file, ...content, ...validators(response) };
  } catch (error) {
    await file.close();
    signal.throwIfAborted();
    if (error instanceof BerthError) throw error;
    const why = timeout.aborted ? "it takes too long" : "its server does not answer or broke off";
    throw new BerthError("download_failed", `${shown(url)} can't be downloaded: ${why}.`, { cause: error });
  }
}

function validators({ headers }: IncomingMessage): Pick<Download, "etag" | "modified" | "comparable"> {
  const seconds = (text: string | undefined): number => {
    const time = Date.parse(text ?? "");
    return Number.isNaN(time) ? 0 : Math.max(0, Math.floor(time / 1000));
  };
  const etag = /^(?:W\/)?"[\x21\x23-\x7e]{1,256}"$/.exec(headers.etag ?? "")?.[0] ?? null;
  const modified = seconds(headers["last-modified"]);
  const isOld = modified > 0 && modified + oldEnoughSeconds <= seconds(headers.date);
  return { etag, modified, comparable: etag !== null || isOld };
}

/** What asks a server for a file unless it is this one. */
function condition(known: KnownFile | null): Record<string, string> {
  if (known === null) return {};
  if (known.etag !== null) return { "if-none-match": known.etag };
  return { "if-modified-since": new Date(known.modified * 1000).toUTCString() };
}

/** null: the known file is what is there. */
async function follow(
  start: URL,
  http: HttpClient,
  signal: AbortSignal,
  known: KnownFile | null,
): Promise<IncomingMessage | null> {
  const headers = { "user-agent": "berth", ...condition(known) };
  let url = start;
  for (let redirects = 0; redirects <= maxRedirects; redirects++) {
    const response = await http.send({ method: "GET", url, headers, signal });
    const status = response.statusCode ?? 0;
    if (status === 200) return response;
    response.destroy();
    if (status === 304 && known !== null) return null;
    const { location } = response.headers;
    if (![301, 302, 303, 307, 308].includes(status) || location === undefined) {
      const code = status >= 500 || status === 429 ? "download_failed" : "invalid_context";
      throw new BerthError(code, `${shown(start.href)} can't be downloaded: its server answers ${status}.`);
    }
    url = redirectTarget(location, url, start);
  }
  throw new BerthError("invalid_context", `${shown(start.href)} can't be downloaded: it redirects without end.`);
}

function redirectTarget(location: string, from: URL, start: URL): URL {
  const next = URL.canParse(location, from.href) ? new URL(location, from.href) : null;
  if (next !== null && (next.protocol === "https:" || (next.protocol === "http:" && from.protocol === "http:"))) {
    return next;
  }
  throw new BerthError("invalid_context", `${shown(start.href)} can't be downloaded: it redirects away from https.`);
}

async function store(
  response: IncomingMessage,
  file: FileHandle,
  url: string,
  maxBytes: number,
): Promise<{ sizeBytes: number; sha256: string }> {
  const hash = createHash("sha256");
  let sizeBytes = 0;
  try {
    for await (const chunk of response as AsyncIterable<Buffer>) {
      if (sizeBytes + chunk.length > maxBytes) {
        throw new BerthError("invalid_context", `${shown(url)} has more than ${maxBytes} bytes.`);
      }
      hash.update(chunk);
      for (let done = 0; done < chunk.length; ) {
        done += (await file.write(chunk, done, chunk.length - done, sizeBytes + done)).bytesWritten;
      }
      sizeBytes += chunk.length;
    }
  } finally {
    response.destroy();
  }
  return { sizeBytes, sha256: hash.digest("hex") };
}

/** The URL for messages: without what may be a secret. */
function shown(text: string): string {
  const url = new URL(text);
  return JSON.stringify(`${url.origin}${url.pathname}`.slice(0, 500));
}
