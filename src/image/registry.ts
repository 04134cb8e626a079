import { BerthError } from "../core/errors.ts";
import { formatReference, type ImageReference } from "../core/reference.ts";
import { HttpClient } from "./http.ts";
import { OutboundPolicy } from "./outbound.ts";
import type { RegistryAuth } from "./registry-auth.ts";
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
    throw errors.find((error) => error.code !== "registry_unreachable") ?? errors[0] ?? new Error("no registry to ask");
  }

  close(): void {
    this.#http.close();
  }

  #repositories(reference: ImageReference & { registry: string }, auth: RegistryAuth | null): Repository[] {
    const { registry, repository } = reference;
    const name = formatReference(reference);
    const make = (base: URL, own: boolean): Repository =>
      // A mirror is another host: the registry's credentials are not for it.
      new Repository({ base, path: repository, name, auth: own ? auth : null, http: this.#http, retry: this.#retry });
    const mirror = this.#options.mirrors.get(registry);
    const host = registry === "docker.io" ? "registry-1.docker.io" : registry;
    const scheme = this.#options.insecure.has(registry) ? "http" : "https";
    const own = make(new URL(`${scheme}://${host}`), true);
    return mirror === undefined ? [own] : [make(new URL(mirror), false), own];
  }
}
