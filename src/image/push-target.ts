import type { IncomingMessage } from "node:http";
import type { Readable } from "node:stream";
import type { BerthError } from "../core/errors.ts";
import type { HttpBody } from "./http.ts";
import type { RegistryRequest, RegistrySession } from "./registry-session.ts";
import type { Retry, Transient } from "./retry.ts";

/** Bytes to store under their digest. */
export interface OutgoingBlob {
  digest: string;
  bytes: number;
  open: () => Readable | Promise<Readable>;
}

/** How a blob came to be in the repository: it was there, came from a repository of the same registry, or was uploaded. */
export type Placed = "present" | "mounted" | "uploaded";

/** One repository at one registry, as one user writes it (distribution spec v1.1, "Push"). */
export class PushTarget {
  readonly #session: RegistrySession;
  readonly #retry: Retry;

  constructor(session: RegistrySession, retry: Retry) {
    this.#session = session;
    this.#retry = retry;
  }

  /**
   * Makes sure that the repository has the blob, with as few bytes as can be: it asks, then mounts it from the repository
   * `from`, then uploads it in one piece. What fails in passing is tried again from the start, as the blob may be there.
   * @throws BerthError `registry_denied`, `registry_unreachable`, `registry_error`, `address_refused`.
   */
  async place(blob: OutgoingBlob, from: string | null, signal: AbortSignal): Promise<Placed> {
    return this.#retry.run(signal, async () => {
      if (await this.#has(blob.digest, signal)) return "present";
      const mounted = from === null ? null : await this.#mount(blob.digest, from, signal);
      if (mounted === "mounted") return "mounted";
      await this.#upload(blob, mounted ?? (await this.#begin(signal)), signal);
      return "uploaded";
    });
  }

  /** Puts a manifest's exact bytes under the tag; all that it names must be there. @throws BerthError as `place` does. */
  async putManifest(tag: string, manifest: OutgoingBlob, mediaType: string, signal: AbortSignal): Promise<void> {
    return this.#retry.run(signal, async () => {
      const url = this.#session.url(`manifests/${tag}`);
      const response = await this.#send({ method: "PUT", url, ...content(manifest, mediaType), signal });
      if (response.statusCode !== 201) throw await this.#failure(response);
      response.destroy();
      const digest = response.headers["docker-content-digest"];
      if (digest !== undefined && digest !== manifest.digest) {
        throw this.#session.wrong("stored the manifest under another digest").error;
      }
    });
  }

  async #has(digest: string, signal: AbortSignal): Promise<boolean> {
    const response = await this.#send({ method: "HEAD", url: this.#session.url(`blobs/${digest}`), signal });
    if (response.statusCode !== 200 && response.statusCode !== 404) throw await this.#failure(response);
    response.resume();
    return response.statusCode === 200;
  }

  /** A registry that does not mount may begin an upload instead, or refuse: null. */
  async #mount(digest: string, from: string, signal: AbortSignal): Promise<"mounted" | URL | null> {
    const url = this.#session.url("blobs/uploads/");
    url.searchParams.set("mount", digest);
    url.searchParams.set("from", from);
    const response = await this.#send({ method: "POST", url, signal });
    const status = response.statusCode ?? 0;
    if (status === 202) return this.#location(response, url);
    if (status !== 201 && (status === 429 || status >= 500)) throw await this.#failure(response);
    response.resume();
    return status === 201 ? "mounted" : null;
  }

  async #begin(signal: AbortSignal): Promise<URL> {
    const url = this.#session.url("blobs/uploads/");
    const response = await this.#send({ method: "POST", url, signal });
    if (response.statusCode !== 202) throw await this.#failure(response);
    return this.#location(response, url);
  }

  async #upload(blob: OutgoingBlob, location: URL, signal: AbortSignal): Promise<void> {
    const url = new URL(location);
    url.searchParams.set("digest", blob.digest);
    const response = await this.#send({ method: "PUT", url, ...content(blob, "application/octet-stream"), signal });
    // The upload began just now: a registry that does not know it has lost it, and can begin another.
    if (response.statusCode === 404) {
      response.destroy();
      throw this.#session.wrong("has lost an upload");
    }
    if (response.statusCode !== 201) throw await this.#failure(response);
    response.resume();
  }

  /** Where an upload goes, which may be another host. */
  #location(response: IncomingMessage, from: URL): URL {
    response.resume();
    return this.#session.target(response.headers.location, from);
  }

  /** Nothing is sent as a body where none is given, which some registries want to be told. */
  #send(request: RegistryRequest): Promise<IncomingMessage> {
    const empty = request.method === "POST" ? { "content-length": "0" } : {};
    return this.#session.send({ ...request, headers: { ...empty, ...request.headers } });
  }

  #failure(response: IncomingMessage): Promise<BerthError | Transient> {
    const { host, name } = this.#session;
    const denied =
      `The registry ${host} refused the push of ${name}: ` +
      "the user name or password is wrong, or this user may not push there.";
    return this.#session.failure(response, denied);
  }
}

function content(blob: OutgoingBlob, type: string): { headers: Record<string, string>; body: HttpBody } {
  return { headers: { "content-type": type }, body: { bytes: blob.bytes, open: blob.open } };
}
