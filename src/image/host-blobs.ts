import type { IncomingMessage } from "node:http";
import { Readable } from "node:stream";
import { BerthError, type ErrorCode } from "../core/errors.ts";
import type { ByteRange } from "./blobs.ts";
import {
  answeredBytes,
  answeredSize,
  answeredText,
  type FarBlobs,
  type OutgoingBlob,
  passing,
  passingUnlessOurs,
  rangeHeader,
} from "./far-blobs.ts";
import type { HttpClient, HttpRequest } from "./http.ts";
import type { Retry, Transient } from "./retry.ts";

/** What the API says to a host that is about to send a blob; see routes/internal/blobs.ts. */
export type UploadAnswer =
  | { state: "present" }
  | { state: "upload"; offset: number }
  | { state: "elsewhere"; url: string; headers: Record<string, string> };

export interface HostBlobsOptions {
  /** The API's internal listener. */
  api: URL;
  /** What this host proves itself with. */
  credential: string;
  http: HttpClient;
  /** For the places that the listener points to. */
  elsewhere: HttpClient;
  retry: Retry;
}

/**
 * The cluster's blobs as a host away from them has them: by the API's internal endpoint, or where that endpoint points to.
 */
export class HostBlobs implements FarBlobs {
  readonly #options: HostBlobsOptions;
  readonly #never = new AbortController().signal;

  constructor(options: HostBlobsOptions) {
    this.#options = options;
  }

  async size(digest: string): Promise<number | null> {
    return this.#again(async () => answeredSize(await this.#ask({ method: "HEAD", digest }), failure));
  }

  async read(digest: string, range: ByteRange, signal: AbortSignal): Promise<IncomingMessage | null> {
    const headers = rangeHeader(range);
    let response = await this.#ask({ method: "GET", digest, headers, signal });
    if (response.statusCode === 307) {
      response.resume();
      const url = new URL(response.headers.location ?? "", this.#options.api);
      response = await this.#send({ method: "GET", url, headers, signal }, this.#options.elsewhere);
    }
    return answeredBytes(response, headers, failure);
  }

  async send(blob: OutgoingBlob): Promise<void> {
    await this.#again(async () => {
      const answer = await this.#offer(blob);
      if (answer.state === "present") return;
      if (answer.state === "upload") return this.#upload(blob, answer.offset);
      const body = { bytes: blob.sizeBytes, open: () => blob.open({ start: 0 }) };
      const url = new URL(answer.url);
      const request = { method: "PUT", url, headers: answer.headers, body, signal: this.#never } as const;
      await finished(await this.#send(request, this.#options.elsewhere));
    });
  }

  async #offer({ digest, sizeBytes }: OutgoingBlob): Promise<UploadAnswer> {
    const bytes = Buffer.from(JSON.stringify({ sizeBytes }));
    const headers = { "content-type": "application/json" };
    const body = { bytes: bytes.length, open: () => Readable.from([bytes]) };
    const response = await this.#ask({ method: "POST", digest, headers, body });
    if (response.statusCode !== 200) throw await failure(response);
    const text = await answeredText(response);
    try {
      return JSON.parse(text) as UploadAnswer;
    } catch (error) {
      throw passing("broke off an answer", error);
    }
  }

  async #upload(blob: OutgoingBlob, offset: number): Promise<void> {
    const { digest, sizeBytes } = blob;
    // A range has one byte at least.
    const headers = sizeBytes === 0 ? {} : { "content-range": `bytes ${offset}-${sizeBytes - 1}/${sizeBytes}` };
    const body = { bytes: sizeBytes - offset, open: () => blob.open({ start: offset }) };
    await finished(await this.#ask({ method: "PUT", digest, headers, body }));
  }

  #ask(
    request: Omit<HttpRequest, "url" | "headers" | "signal"> & {
      digest: string;
      headers?: Record<string, string>;
      signal?: AbortSignal;
    },
  ): Promise<IncomingMessage> {
    const { api, credential } = this.#options;
    const { digest, headers, signal = this.#never, ...rest } = request;
    const authorized = { ...headers, authorization: `Bearer ${credential}` };
    return this.#send({ ...rest, url: new URL(`/internal/blobs/${digest}`, api), headers: authorized, signal });
  }

  async #send(request: HttpRequest, http = this.#options.http): Promise<IncomingMessage> {
    try {
      return await http.send(request);
    } catch (error) {
      throw passingUnlessOurs(error, request.signal);
    }
  }

  #again<T>(task: () => Promise<T>): Promise<T> {
    return this.#options.retry.run(this.#never, task);
  }
}

async function finished(response: IncomingMessage): Promise<void> {
  if (response.statusCode !== 200 && response.statusCode !== 201) throw await failure(response);
  response.resume();
}

/** What the API, or the bucket, answered: its own error, or one that may pass. */
async function failure(response: IncomingMessage): Promise<BerthError | Transient> {
  const status = response.statusCode ?? 0;
  const text = await answeredText(response);
  const told = apiError(text);
  // What was sent and what is there do not fit together: asking anew tells where to go on.
  if (status === 409 || status === 429 || (status >= 500 && status !== 507)) {
    return passing(told === null ? `answered ${status}` : `answered ${status}: ${told.message}`);
  }
  return told ?? passing(`answered ${status}`).error;
}

/** The error of `{ code, detail }`; null when the text is something else, such as a bucket's XML. */
function apiError(text: string): BerthError | null {
  try {
    const { code, detail } = JSON.parse(text) as { code: ErrorCode; detail: string };
    const error = new BerthError(code, detail);
    return Number.isInteger(error.status) ? error : null;
  } catch {
    return null;
  }
}
