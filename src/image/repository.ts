import type { IncomingMessage } from "node:http";
import { BerthError } from "../core/errors.ts";
import { digestOf } from "./digest.ts";
import { type HttpClient, readBody } from "./http.ts";
import { acceptedManifests, type Descriptor, maxDocumentBytes } from "./manifest.ts";
import { basicAuthorization, parseChallenges, parseToken, type RegistryAuth, tokenUrl } from "./registry-auth.ts";
import { type Retry, Transient } from "./retry.ts";

export interface FetchedManifest {
  bytes: Buffer;
  mediaType: string;
  /** Computed from the bytes. */
  digest: string;
}

const maxRedirects = 5;

/** One repository at one registry, as one user reads it: `GET /v2/<path>/…`. */
export class Repository {
  readonly #base: URL;
  readonly #path: string;
  readonly #name: string;
  readonly #auth: RegistryAuth | null;
  readonly #http: HttpClient;
  readonly #retry: Retry;
  /** What the registry asked for and took last; for its own origin only. */
  #authorization: string | null = null;

  /** `name` is what messages call the image; `base` may have a path of its own. */
  constructor(options: {
    base: URL;
    path: string;
    name: string;
    auth: RegistryAuth | null;
    http: HttpClient;
    retry: Retry;
  }) {
    this.#base = options.base;
    this.#path = options.path;
    this.#name = options.name;
    this.#auth = options.auth;
    this.#http = options.http;
    this.#retry = options.retry;
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
        throw new BerthError("image_not_found", `The registry ${this.#base.host} has no image ${this.#name}.`);
      }
      const bytes = await this.#document(response);
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
      const bytes = await this.#document(await this.#blob(descriptor, 0, signal));
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
  async *blob(descriptor: Descriptor, signal: AbortSignal): AsyncGenerator<Uint8Array, void, undefined> {
    let received = 0;
    for (let failures = 0; received < descriptor.size; ) {
      try {
        const response = await this.#blob(descriptor, received, signal);
        try {
          for await (const chunk of this.#body(response)) {
            received += chunk.length;
            failures = 0;
            yield chunk;
          }
        } finally {
          response.destroy();
        }
        if (received < descriptor.size) throw this.#unreachable("it ended the transfer early");
      } catch (error) {
        await this.#retry.wait(error, ++failures, signal);
      }
    }
  }

  /** The response with the blob's bytes from `start` on. */
  async #blob(descriptor: Descriptor, start: number, signal: AbortSignal): Promise<IncomingMessage> {
    const range: Record<string, string> = start === 0 ? {} : { range: `bytes=${String(start)}-` };
    const response = await this.#get(`blobs/${descriptor.digest}`, range, signal);
    if (response.statusCode === 404) {
      response.destroy();
      throw this.#wrong(`has no blob ${descriptor.digest}, which the manifest of ${this.#name} names`);
    }
    if (start === 0) return response;
    if (
      response.statusCode === 206 &&
      response.headers["content-range"]?.startsWith(`bytes ${String(start)}-`) === true
    ) {
      return response;
    }
    response.destroy();
    throw this.#wrong("broke off a transfer and can't go on with it");
  }

  async #document(response: IncomingMessage): Promise<Buffer> {
    const bytes = await readBody(response, maxDocumentBytes).catch((error: unknown) => {
      throw this.#unreachable("it broke off the transfer", error);
    });
    if (bytes === null) throw new BerthError("invalid_image", `A document of ${this.#name} is larger than 4 MiB.`);
    return bytes;
  }

  async *#body(response: IncomingMessage): AsyncGenerator<Buffer, void, undefined> {
    try {
      for await (const chunk of response as AsyncIterable<Buffer>) yield chunk;
    } catch (error) {
      throw this.#unreachable("it broke off the transfer", error);
    }
  }

  /** GET with authorization and redirects. Returns success and 404; anything else is an error. */
  async #get(path: string, headers: Record<string, string>, signal: AbortSignal): Promise<IncomingMessage> {
    const url = new URL(`${this.#base.href.replace(/\/$/, "")}/v2/${this.#path}/${path}`);
    let response = await this.#follow(url, headers, signal);
    if (response.statusCode === 401) {
      response.destroy();
      await this.#authorize(response.headers["www-authenticate"] ?? "", signal);
      response = await this.#follow(url, headers, signal);
    }
    const status = response.statusCode ?? 0;
    if (status === 200 || status === 206 || status === 404) return response;
    response.destroy();
    if (status === 401 || status === 403) {
      throw new BerthError(
        "registry_denied",
        `The registry ${this.#base.host} refused access to ${this.#name}, or has no such image.`,
      );
    }
    if (status === 429) {
      const after = Number(response.headers["retry-after"] ?? 0) * 1000;
      throw new Transient(this.#wrong("has had too many requests").error, Number.isFinite(after) ? after : 0);
    }
    throw status >= 500 ? this.#wrong(`answered ${String(status)}`) : this.#wrong(`answered ${String(status)}`).error;
  }

  /** Redirects are followed to https (or from http), at most five, and carry no credentials to another origin. */
  async #follow(start: URL, headers: Record<string, string>, signal: AbortSignal): Promise<IncomingMessage> {
    let url = start;
    for (let redirects = 0; ; redirects++) {
      const own = url.origin === this.#base.origin && this.#authorization !== null;
      const all = own ? { ...headers, authorization: this.#authorization ?? "" } : headers;
      const response = await this.#send(url, all, signal);
      const location = response.headers.location;
      if (![301, 302, 303, 307, 308].includes(response.statusCode ?? 0) || location === undefined) return response;
      response.destroy();
      const next = URL.canParse(location, url.href) ? new URL(location, url.href) : null;
      if (next === null || redirects === maxRedirects) throw this.#wrong("redirects to nowhere").error;
      if (next.protocol !== "https:" && !(next.protocol === "http:" && url.protocol === "http:")) {
        throw this.#wrong("redirects away from https").error;
      }
      next.username = "";
      next.password = "";
      url = next;
    }
  }

  /** Answers a 401: with the user's name and password, or with a token got for them. */
  async #authorize(header: string, signal: AbortSignal): Promise<void> {
    const challenges = parseChallenges(header);
    const bearer = challenges.find((challenge) => challenge.scheme === "bearer");
    if (bearer === undefined) {
      if (this.#auth === null || !challenges.some((challenge) => challenge.scheme === "basic")) {
        throw new BerthError("registry_denied", `The registry ${this.#base.host} wants a user for ${this.#name}.`);
      }
      this.#authorization = basicAuthorization(this.#auth);
      return;
    }
    const url = tokenUrl(bearer, this.#base, `repository:${this.#path}:pull`);
    if (!(url instanceof URL))
      throw new BerthError("registry_error", `The registry ${this.#base.host}: ${url.refused}.`);
    const response = await this.#send(
      url,
      this.#auth === null ? {} : { authorization: basicAuthorization(this.#auth) },
      signal,
    );
    const status = response.statusCode ?? 0;
    const body = await this.#document(response);
    if (status === 401 || status === 403) {
      throw new BerthError("registry_denied", `The registry ${this.#base.host} refused the user for ${this.#name}.`);
    }
    if (status === 429 || status >= 500) throw this.#wrong(`gave no token (${String(status)})`);
    const token = status === 200 ? parseToken(body.toString("utf8")) : null;
    if (token === null) throw this.#wrong("gave no token").error;
    this.#authorization = `Bearer ${token}`;
  }

  async #send(url: URL, headers: Record<string, string>, signal: AbortSignal): Promise<IncomingMessage> {
    try {
      return await this.#http.send({ method: "GET", url, headers: { "user-agent": "berth", ...headers }, signal });
    } catch (error) {
      signal.throwIfAborted();
      if (error instanceof BerthError) throw error;
      throw this.#unreachable(reasonOf(error), error);
    }
  }

  #unreachable(why: string, cause?: unknown): Transient {
    const detail = `The registry ${this.#base.host} can't be reached: ${why}.`;
    return new Transient(new BerthError("registry_unreachable", detail, { cause }));
  }

  #wrong(what: string): Transient {
    return new Transient(new BerthError("registry_error", `The registry ${this.#base.host} ${what}.`));
  }
}

const reasons: Readonly<Record<string, string>> = {
  ENOTFOUND: "its name does not resolve",
  EAI_AGAIN: "its name can't be resolved now",
  ECONNREFUSED: "the connection is refused",
  ECONNRESET: "the connection is broken",
  ETIMEDOUT: "it does not answer",
  EHOSTUNREACH: "there is no route to it",
  ENETUNREACH: "there is no route to it",
};

/** A network error in words; its own message may name addresses of our network. */
function reasonOf(error: unknown): string {
  const code = (error as NodeJS.ErrnoException | null)?.code ?? "";
  if (/CERT|SSL|TLS|EPROTO/.test(code)) return "it has no valid TLS certificate";
  return reasons[code] ?? "it does not answer";
}
