import type { IncomingMessage } from "node:http";
import { BerthError } from "../core/errors.ts";
import { maxDocumentBytes } from "./document.ts";
import { type HttpBody, type HttpClient, type HttpRequest, readBody } from "./http.ts";
import { basicAuthorization, parseChallenges, parseToken, type RegistryAuth, tokenUrl } from "./registry-auth.ts";
import { Transient } from "./retry.ts";

const maxRedirects = 5;
/** Of an answer that says what went wrong, this much is read. */
const maxErrorBytes = 64 << 10;

export interface SessionOptions {
  /** The registry; it may have a path of its own. */
  base: URL;
  /** The repository there. */
  path: string;
  /** What messages call the image. */
  name: string;
  auth: RegistryAuth | null;
  http: HttpClient;
  /** What tokens are asked for (distribution's token scopes), such as `repository:team/web:pull`. */
  scopes: readonly string[];
}

/** A request to the repository's registry. */
export interface RegistryRequest {
  method: HttpRequest["method"];
  url: URL;
  headers?: Readonly<Record<string, string>>;
  body?: HttpBody;
  signal: AbortSignal;
}

/**
 * One user's requests about one repository of one registry (distribution spec v1.1): it answers challenges, follows
 * redirects and says in words what went wrong. Credentials and tokens go to the registry's own origin only, and to the
 * token server that it names.
 */
export class RegistrySession {
  readonly #options: SessionOptions;
  readonly #base: URL;
  /** What the registry asked for and took last; for its own origin only. */
  #authorization: string | null = null;

  constructor(options: SessionOptions) {
    this.#options = options;
    this.#base = options.base;
  }

  get host(): string {
    return this.#base.host;
  }

  /** What messages call the image. */
  get name(): string {
    return this.#options.name;
  }

  /** `path` below the repository: `manifests/…`, `blobs/…`. */
  url(path: string): URL {
    return new URL(`${this.#base.href.replace(/\/$/, "")}/v2/${this.#options.path}/${path}`);
  }

  /** Sends the request, once more with authorization when it is asked for. Any status but 401's first is the caller's. */
  async send(request: RegistryRequest): Promise<IncomingMessage> {
    const response = await this.#follow(request);
    if (response.statusCode !== 401) return response;
    response.destroy();
    await this.#authorize(response.headers["www-authenticate"] ?? "", request.signal);
    return this.#follow(request);
  }

  /** A response's whole body of at most 4 MiB. @throws BerthError `invalid_image` when it is larger. */
  async document(response: IncomingMessage): Promise<Buffer> {
    const bytes = await readBody(response, maxDocumentBytes).catch((error: unknown) => {
      throw this.unreachable("it broke off the transfer", error);
    });
    if (bytes === null) throw new BerthError("invalid_image", `A document of ${this.name} is larger than 4 MiB.`);
    return bytes;
  }

  /** The error that a status which is no success stands for: lasting, or `Transient`. `denied` says what 401 and 403 mean. */
  async failure(response: IncomingMessage, denied: string): Promise<BerthError | Transient> {
    const status = response.statusCode ?? 0;
    const body = await readBody(response, maxErrorBytes).catch(() => null);
    response.destroy();
    if (status === 401 || status === 403) return new BerthError("registry_denied", denied);
    if (status === 429) {
      const after = Number(response.headers["retry-after"] ?? 0) * 1000;
      return new Transient(this.wrong("has had too many requests").error, Number.isFinite(after) ? after : 0);
    }
    const code = errorCode(body);
    const error = this.wrong(`answered ${String(status)}${code === null ? "" : ` (${code})`}`);
    return status >= 500 ? error : error.error;
  }

  /** That the registry does not answer, which may pass. */
  unreachable(why: string, cause?: unknown): Transient {
    const detail = `The registry ${this.host} can't be reached: ${why}.`;
    return new Transient(new BerthError("registry_unreachable", detail, { cause }));
  }

  /** That the registry `what` ("answered 500"), which may pass; what does not pass is its `error`. */
  wrong(what: string): Transient {
    return new Transient(new BerthError("registry_error", `The registry ${this.host} ${what}.`));
  }

  /**
   * Where the registry points to from `from`: https, or http from http, without user and password.
   * @throws BerthError `registry_error`.
   */
  target(location: string | undefined, from: URL): URL {
    const next = location !== undefined && URL.canParse(location, from.href) ? new URL(location, from.href) : null;
    if (next === null) throw this.wrong("redirects to nowhere").error;
    if (next.protocol !== "https:" && !(next.protocol === "http:" && from.protocol === "http:")) {
      throw this.wrong("redirects away from https").error;
    }
    next.username = "";
    next.password = "";
    return next;
  }

  /** Redirects of reads are followed, at most five; those of what has an effect are answers like any other. */
  async #follow(request: RegistryRequest): Promise<IncomingMessage> {
    const reads = request.method === "GET" || request.method === "HEAD";
    let { url } = request;
    for (let redirects = 0; ; redirects++) {
      const own = url.origin === this.#base.origin && this.#authorization !== null;
      const headers = own ? { ...request.headers, authorization: this.#authorization ?? "" } : request.headers;
      const response = await this.#send({ ...request, url, headers: headers ?? {} });
      const { location } = response.headers;
      const redirected = [301, 302, 303, 307, 308].includes(response.statusCode ?? 0) && location !== undefined;
      if (!reads || !redirected) return response;
      response.destroy();
      if (redirects === maxRedirects) throw this.wrong("redirects to nowhere").error;
      url = this.target(location, url);
    }
  }

  /** Answers a 401: with the user's name and password, or with a token got for them. */
  async #authorize(header: string, signal: AbortSignal): Promise<void> {
    const { auth, scopes } = this.#options;
    const challenges = parseChallenges(header);
    const bearer = challenges.find((challenge) => challenge.scheme === "bearer");
    if (bearer === undefined) {
      if (auth === null || !challenges.some((challenge) => challenge.scheme === "basic")) {
        throw new BerthError("registry_denied", `The registry ${this.host} wants a user for ${this.name}.`);
      }
      this.#authorization = basicAuthorization(auth);
      return;
    }
    const url = tokenUrl(bearer, this.#base, ...scopes);
    if (!(url instanceof URL)) throw new BerthError("registry_error", `The registry ${this.host}: ${url.refused}.`);
    const headers: Record<string, string> = auth === null ? {} : { authorization: basicAuthorization(auth) };
    const response = await this.#send({ method: "GET", url, headers, signal });
    const status = response.statusCode ?? 0;
    const body = await this.document(response);
    if (status === 401 || status === 403) {
      throw new BerthError("registry_denied", `The registry ${this.host} refused the user for ${this.name}.`);
    }
    if (status === 429 || status >= 500) throw this.wrong(`gave no token (${String(status)})`);
    const token = status === 200 ? parseToken(body.toString("utf8")) : null;
    if (token === null) throw this.wrong("gave no token").error;
    this.#authorization = `Bearer ${token}`;
  }

  async #send(request: HttpRequest): Promise<IncomingMessage> {
    try {
      return await this.#options.http.send({ ...request, headers: { "user-agent": "berth", ...request.headers } });
    } catch (error) {
      request.signal.throwIfAborted();
      if (error instanceof BerthError) throw error;
      throw this.unreachable(reasonOf(error), error);
    }
  }
}

/** The code of a registry's error answer, such as `MANIFEST_INVALID`; its message is text of anyone's. */
function errorCode(body: Buffer | null): string | null {
  try {
    const answer = JSON.parse(body?.toString("utf8") ?? "") as { errors?: { code?: unknown }[] } | null;
    const code = answer?.errors?.[0]?.code;
    return typeof code === "string" && /^[A-Z_]{1,40}$/.test(code) ? code : null;
  } catch {
    return null;
  }
}

const reasons: Readonly<Record<string, string>> = {
  ENOTFOUND: "its name does not resolve",
  EAI_AGAIN: "its name can't be resolved now",
  ECONNREFUSED: "the connection is refused",
  ECONNRESET: "the connection is broken",
  EPIPE: "the connection is broken",
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
