import type { IncomingMessage } from "node:http";
import { Readable } from "node:stream";
import { z } from "@hono/zod-openapi";
import { bodyLimit } from "hono/body-limit";
import { BerthError } from "../../core/errors.ts";
import { digestPattern } from "../../core/reference.ts";
import type { ByteRange, ClusterStore, StoredBlob } from "../../image/blobs.ts";
import type { UploadAnswer } from "../../image/host-blobs.ts";
import type { InternalApp } from "./app.ts";

/** As much as the largest layer may have before compression (image/layer-limits.ts), and a little. */
const maxBlobBytes = 33 * 2 ** 30;

const Offer = z.strictObject({ sizeBytes: z.int().min(0).max(maxBlobBytes) });

const maxOfferBytes = 4096;

/** How long an upload that the sender has given up may take to end by itself, in milliseconds. */
const lingerMs = 1_000;

const path = "/internal/blobs/:digest";

/**
 * The cluster's blobs, by digest, for hosts. A host may read any blob: which images it is to run changes all the time, and
 * it could place what it likes into those that it builds anyway.
 *
 * - `HEAD`, `GET` with `Range`: 307 to the bucket, where the store is one.
 * - `POST { sizeBytes }`, before sending: `{ state: "present" }`; `{ state: "upload", offset }`, to go on from there with PUT;
 *   or `{ state: "elsewhere", url, headers }`, to PUT it there.
 * - `PUT` with `Content-Range`: what arrives stays when the connection breaks.
 */
export function addBlobs(app: InternalApp, blobs: ClusterStore): void {
  const uploads = new Uploads();
  app.get(path, async (c) => {
    const digest = parseDigest(c.req.param("digest"));
    const size = await blobs.size(digest);
    if (size === null) throw new BerthError("not_found", `There is no blob ${digest}.`);
    const common = { "accept-ranges": "bytes", "content-type": "application/octet-stream" };
    // hono answers HEAD by what GET answers.
    if (c.req.method === "HEAD") return c.body(null, 200, { ...common, "content-length": String(size) });
    const elsewhere = await blobs.readElsewhere(digest);
    if (elsewhere !== null) return c.redirect(elsewhere.url.href, 307);
    const range = parseRange(c.req.header("range"));
    if (range !== null && range.start >= size) {
      c.header("content-range", `bytes */${size}`);
      throw new BerthError("range_not_satisfiable", `The blob ${digest} has ${size} bytes.`);
    }
    const start = range?.start ?? 0;
    const end = Math.min(range?.end ?? size - 1, size - 1);
    const stream = await blobs.open(digest, range === null ? undefined : { start, end });
    const headers = { ...common, "content-length": String(end - start + 1) };
    const body = Readable.toWeb(stream) as ReadableStream;
    if (range === null) return c.body(body, 200, headers);
    return c.body(body, 206, { ...headers, "content-range": `bytes ${start}-${end}/${size}` });
  });

  const limit = bodyLimit({
    maxSize: maxOfferBytes,
    onError: () => {
      throw new BerthError("body_too_large", `An offer has at most ${maxOfferBytes} bytes.`);
    },
  });
  app.post(path, limit, async (c) => {
    const digest = parseDigest(c.req.param("digest"));
    const offer = Offer.safeParse(await c.req.json().catch(() => null));
    if (!offer.success) throw new BerthError("invalid_request", z.prettifyError(offer.error));
    const { sizeBytes } = offer.data;
    await uploads.stop(`${c.var.hostId} ${digest}`);
    return c.json(await answerOffer(blobs, { digest, sizeBytes }, c.var.hostId));
  });

  app.put(path, async (c) => {
    const digest = parseDigest(c.req.param("digest"));
    const { start, sizeBytes } = parseContentRange(c.req.header("content-range"), c.req.header("content-length"));
    const { incoming } = c.env;
    const sender = c.var.hostId;
    await uploads.run(`${sender} ${digest}`, incoming, async () => {
      const source = incoming.iterator({ destroyOnReturn: false });
      await blobs.receive(source, { digest, sizeBytes, start, sender });
    });
    return c.json({ digest, sizeBytes }, 201);
  });
}

/** What is being sent, by sender and digest. */
class Uploads {
  readonly #running = new Map<string, { incoming: IncomingMessage; ended: Promise<void> }>();

  async run(key: string, incoming: IncomingMessage, receive: () => Promise<void>): Promise<void> {
    const received = receive();
    const upload = { incoming, ended: received.catch(() => undefined) };
    this.#running.set(key, upload);
    try {
      await received;
    } finally {
      if (this.#running.get(key) === upload) this.#running.delete(key);
      // An error is answered while the host still sends: cut off, it would see a broken connection and not the answer.
      incoming.resume();
    }
  }

  /** Ends what the sender has given up: it asks how to go on. What has come of it is kept when this returns. */
  async stop(key: string): Promise<void> {
    const upload = this.#running.get(key);
    if (upload === undefined) return;
    // A connection that broke ends by itself when all that came is read; one that nobody has told of its end does not.
    const late = setTimeout(() => upload.incoming.destroy(), lingerMs);
    await upload.ended;
    clearTimeout(late);
  }
}

/** How the host is to send the blob, if at all. */
async function answerOffer(blobs: ClusterStore, blob: StoredBlob, sender: string): Promise<UploadAnswer> {
  const { digest, sizeBytes } = blob;
  if ((await blobs.size(digest)) !== null) return { state: "present" };
  const elsewhere = await blobs.writeElsewhere(blob);
  if (elsewhere !== null) return { state: "elsewhere", url: elsewhere.url.href, headers: elsewhere.headers };
  const received = await blobs.received({ digest, sender });
  return { state: "upload", offset: received < sizeBytes ? received : 0 };
}

function parseDigest(text: string): string {
  if (digestPattern.test(text)) return text;
  throw new BerthError("invalid_reference", `${JSON.stringify(text.slice(0, 100))} is not a sha256 digest.`);
}

/** One range of bytes (RFC 9110, section 14.2); anything else is as no range at all, which a server may always do. */
function parseRange(header: string | undefined): ByteRange | null {
  const [, first, last] = /^bytes=(\d{1,15})-(\d{1,15})?$/.exec(header ?? "") ?? [];
  if (first === undefined) return null;
  if (last === undefined) return { start: Number(first) };
  return Number(last) < Number(first) ? null : { start: Number(first), end: Number(last) };
}

/** Where what is sent begins, and how much it makes in all: up to the last byte, and without the header everything. */
function parseContentRange(
  range: string | undefined,
  length: string | undefined,
): { start: number; sizeBytes: number } {
  const [, first, last, size] = /^bytes (\d{1,15})-(\d{1,15})\/(\d{1,15})$/.exec(range ?? "") ?? [];
  const start = Number(first ?? 0);
  const sizeBytes = Number(size ?? length ?? Number.NaN);
  const upToTheEnd =
    first === undefined ? range === undefined : start <= Number(last) && Number(last) + 1 === sizeBytes;
  if (upToTheEnd && sizeBytes <= maxBlobBytes) return { start, sizeBytes };
  throw new BerthError("invalid_request", "Send Content-Range: bytes START-LAST/SIZE, up to the blob's last byte.");
}
