import { BerthError } from "../core/errors.ts";
import { formatReference, type ImageReference } from "../core/reference.ts";
import { HttpClient } from "./http.ts";
import { OutboundPolicy } from "./outbound.ts";
import { PushTarget } from "./push-target.ts";
import type { RegistryAuth } from "./registry-auth.ts";
import { RegistrySession } from "./registry-session.ts";
import { type FetchedManifest, Repository } from "./repository.ts";
import { Retry, type RetryOptions } from "./retry.ts";

export interface RegistryOptions {
  /** Registry host → base URL of a mirror that is asked first. */
  mirrors: ReadonlyMap<string, string>;
  /** Registry hosts (with port) that are spoken to in plain http. */
  insecure: ReadonlySet<string>;
  /** CIDR blocks of private networks that registries may be in. */
  allow: readonly string[];
  /** How long a connection may be silent. */
  idleMs?: number;
  retry?: RetryOptions;
}

/**
 * A client of OCI registries (distribution spec v1.1). Mirrors and insecure registries are the operator's choice, so they
 * may be anywhere; all other connections go to public addresses or allowed networks only.
 */
export class Registry {
  readonly #options: RegistryOptions;
  readonly #http: HttpClient;
  readonly #retry: Retry;

  constructor(options: RegistryOptions) {
    const trusted = [
      ...[...options.mirrors.values()].map((base) => new URL(base).origin),
      ...[...options.insecure].map((host) => new URL(`http://${host}`).origin),
    ];
    this.#options = options;
    this.#http = new HttpClient(new OutboundPolicy(options.allow, trusted), options.idleMs ?? 30_000);
    this.#retry = new Retry(options.retry);
  }

  /**
   * Finds a reference's manifest or index. Mirrors come first; a mirror that does not answer or does not have it is passed
   * over. Further documents and blobs are to be read from the repository that is returned, which is where it was found.
   * @throws BerthError `image_not_found`, `registry_denied`, `registry_unreachable`, `registry_error`, `address_refused`.
   */
  async resolve(
    reference: ImageReference & { registry: string },
    auth: RegistryAuth | null,
    signal: AbortSignal,
  ): Promise<{ repository: Repository; manifest: FetchedManifest }> {
    const errors: BerthError[] = [];
    for (const repository of this.#repositories(reference, auth)) {
      try {
        const manifest = await repository.manifest(reference.digest ?? reference.tag ?? "latest", signal);
        return { repository, manifest };
      } catch (error) {
        if (!(error instanceof BerthError)) throw error;
        errors.push(error);
      }
    }
    // An answer says more than none does.
    const error = errors.find(({ code }) => code !== "registry_unreachable") ?? errors[0];
    throw error === undefined ? new Error("no registry to ask") : named(error, reference);
  }

  /**
   * A repository to push to, never a mirror's. `sources` are repositories of the same registry that blobs may be mounted
   * from: tokens are asked for with the right to read them.
   */
  target(
    reference: ImageReference & { registry: string },
    auth: RegistryAuth | null,
    sources: readonly string[],
  ): PushTarget {
    const scopes = [
      `repository:${reference.repository}:pull,push`,
      ...sources.map((source) => `repository:${source}:pull`),
    ];
    return new PushTarget(this.#session(reference, this.#base(reference.registry), auth, scopes), this.#retry);
  }

  close(): void {
    this.#http.close();
  }

  #repositories(reference: ImageReference & { registry: string }, auth: RegistryAuth | null): Repository[] {
    const scopes = [`repository:${reference.repository}:pull`];
    // A mirror is another host: the registry's credentials are not for it.
    const make = (base: URL, user: RegistryAuth | null): Repository =>
      new Repository(this.#session(reference, base, user, scopes), this.#retry);
    const mirror = this.#options.mirrors.get(reference.registry);
    const own = make(this.#base(reference.registry), auth);
    return mirror === undefined ? [own] : [make(new URL(mirror), null), own];
  }

  #session(
    reference: ImageReference,
    base: URL,
    auth: RegistryAuth | null,
    scopes: readonly string[],
  ): RegistrySession {
    const name = formatReference(reference);
    return new RegistrySession({ base, path: reference.repository, name, auth, http: this.#http, scopes });
  }

  /** Where a registry itself is, whatever its mirrors. */
  #base(registry: string): URL {
    const host = registry === "docker.io" ? "registry-1.docker.io" : registry;
    return new URL(`${this.#options.insecure.has(registry) ? "http" : "https"}://${host}`);
  }
}

/** An error that says which image could not be had: a build names many, and some by mistake. */
function named(error: BerthError, reference: ImageReference): BerthError {
  const name = formatReference(reference);
  if (error.message.includes(name)) return error;
  return new BerthError(error.code, `${name} can't be looked up: ${error.message}`, {
    facts: error.facts,
    cause: error,
  });
}
