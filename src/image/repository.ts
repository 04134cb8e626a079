import type { IncomingMessage } from "node:http";
import { BerthError } from "../core/errors.ts";
import { digestOf } from "./digest.ts";
import { acceptedManifests, type Descriptor } from "./manifest.ts";
import type { RegistrySession } from "./registry-session.ts";
import { type BreakingSource, resumed } from "./resumed.ts";
import type { Retry } from "./retry.ts";

export interface FetchedManifest {
  bytes: Buffer;
  mediaType: string;
  /** Computed from the bytes. */
  digest: string;
}

/** One repository at one registry, as one user reads it: `GET /v2/<path>/…`. */
export class Repository {
  readonly #session: RegistrySession;
  readonly #retry: Retry;

  constructor(session: RegistrySession, retry: Retry) {
    this.#session = session;
    this.#retry = retry;
  }

  /**
   * The manifest or index of a tag or digest, of a digest only if it has it.
   * @throws BerthError `image_not_found`, `registry_denied`, `registry_unreachable`, `registry_error`, `digest_mismatch`.
   */
  async manifest(tagOrDigest: string, signal: AbortSignal): Promise<FetchedManifest> {
    return this.#retry.run(signal, async () => {
      const response = await this.#get(`manifests/${tagOrDigest}`, { accept: acceptedManifests.join(", ") }, signal);
      if (response.statusCode === 404) {
        response.destroy();
        throw new BerthError(
          "image_not_found",
          `The registry ${this.#session.host} has no image ${this.#session.name}.`,
        );
      }
      const bytes = await this.#session.document(response);
      const digest = digestOf(bytes);
      if (tagOrDigest.includes(":") && tagOrDigest !== digest) {
        throw new BerthError("digest_mismatch", `The manifest ${tagOrDigest} came as ${digest}.`);
      }
      return { bytes, mediaType: response.headers["content-type"] ?? "", digest };
    });
  }

  /** A small blob, such as a config, whole. Its digest is checked. */
  async document(descriptor: Descriptor, signal: AbortSignal): Promise<Buffer> {
    return this.#retry.run(signal, async () => {
      const bytes = await this.#session.document(await this.#blob(descriptor, 0, signal));
      if (bytes.length !== descriptor.size || digestOf(bytes) !== descriptor.digest) {
        throw new BerthError("digest_mismatch", `The blob ${descriptor.digest} came with other content.`);
      }
      return bytes;
    });
  }

  /**
   * A blob's bytes. When the connection breaks the rest is asked for by range. Whoever reads checks size and digest.
   * @throws BerthError `registry_unreachable`, `registry_error`, `registry_denied`.
   */
  blob(descriptor: Descriptor, signal: AbortSignal): AsyncGenerator<Uint8Array, void, undefined> {
    const source: BreakingSource = {
      read: (start) => this.#blob(descriptor, start, signal),
      broken: (how, cause) => this.#session.unreachable(`it ${how}`, cause),
    };
    return resumed(source, { start: 0, end: descriptor.size }, this.#retry, signal);
  }

  /** The response with the blob's bytes from `start` on. */
  async #blob(descriptor: Descriptor, start: number, signal: AbortSignal): Promise<IncomingMessage> {
    const range: Record<string, string> = start === 0 ? {} : { range: `bytes=${String(start)}-` };
    const response = await this.#get(`blobs/${descriptor.digest}`, range, signal);
    if (response.statusCode === 404) {
      response.destroy();
      throw this.#session.wrong(`has no blob ${descriptor.digest}, which the manifest of ${this.#session.name} names`);
    }
    if (start === 0) return response;
    if (
      response.statusCode === 206 &&
      response.headers["content-range"]?.startsWith(`bytes ${String(start)}-`) === true
    ) {
      return response;
    }
    response.destroy();
    throw this.#session.wrong("broke off a transfer and can't go on with it");
  }

  /** GET with authorization and redirects. Returns success and 404; anything else is an error. */
  async #get(path: string, headers: Record<string, string>, signal: AbortSignal): Promise<IncomingMessage> {
    const session = this.#session;
    const response = await session.send({ method: "GET", url: session.url(path), headers, signal });
    const status = response.statusCode ?? 0;
    if (status === 200 || status === 206 || status === 404) return response;
    const denied = `The registry ${session.host} refused access to ${session.name}, or has no such image.`;
    throw await session.failure(response, denied);
  }
}
