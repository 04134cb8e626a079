import type { StepResult } from "../../core/build-request.ts";
import type { BlobStore } from "../../image/blobs.ts";
import type { MadeLayer } from "../../image/layers.ts";
import type { ImportedCaches } from "./imported-caches.ts";
import type { StepCache } from "./ports.ts";

/** Results of steps as one build looks them up and keeps them. */
export class StepResults {
  readonly #own: StepCache;
  readonly #blobs: Pick<BlobStore, "size">;
  readonly #imports: ImportedCaches;
  readonly #noCache: boolean;
  /** What the build has found and made, by key. */
  readonly used = new Map<string, StepResult>();
  /** Layers that the build has made, by digest: each resolves when its blob is in the store. */
  readonly #stored = new Map<string, Promise<void>>();

  /** @param noCache Do not look for earlier results; those of this build are kept all the same. */
  constructor(own: StepCache, blobs: Pick<BlobStore, "size">, imports: ImportedCaches, noCache: boolean) {
    this.#own = own;
    this.#blobs = blobs;
    this.#imports = imports;
    this.#noCache = noCache;
  }

  /** What a step with this key made before: in this build, as the project knows, or else as the build's caches say. */
  async find(key: string): Promise<StepResult | null> {
    if (this.#noCache) return null;
    const known = this.used.get(key) ?? (await this.#usable(key)) ?? (await this.#imports.find(key));
    if (known !== null) this.used.set(key, known);
    return known;
  }

  /** What a step of this build has made; only this build can count on it until it is kept. */
  note(keys: readonly string[], result: StepResult, made: MadeLayer | null): void {
    for (const key of keys) this.used.set(key, result);
    if (made !== null) this.#stored.set(made.layer.digest, made.stored);
  }

  /** Remembers for later builds what a step has made, once that is in the store. @throws what storing it threw */
  async keep(key: string, result: StepResult): Promise<void> {
    this.used.set(key, result);
    if (result.layer !== null) await this.#stored.get(result.layer.digest);
    await this.#imports.remember(key, result);
  }

  /** A result of the project's; one whose blob has been collected is as good as none. */
  async #usable(key: string): Promise<StepResult | null> {
    const known = await this.#own.find(key);
    if (known === null) return null;
    // What a cache said counts for who asks that cache.
    if (known.from !== undefined && !this.#imports.names(known.from)) return null;
    if (known.layer === null) return known;
    return (await this.#blobs.size(known.layer.digest)) === null ? null : known;
  }
}
