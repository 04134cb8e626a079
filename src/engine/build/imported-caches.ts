import type { StepResult } from "../../core/build-request.ts";
import { BerthError } from "../../core/errors.ts";
import type { Layer } from "../../core/image.ts";
import { type ImageReference, parseRegistryReference } from "../../core/reference.ts";
import { layerName } from "../../image/build-cache.ts";
import { readCache } from "../../image/inline-cache.ts";
import type { Repository } from "../../image/repository.ts";
import { Turns } from "../../image/turns.ts";
import type { BuildMeans } from "./ports.ts";
import type { BuildReport } from "./report.ts";

/** What the caches of one build may cost: the time to read a list, and bytes of layers (compressed) in all. */
const cacheLimits = { listMs: 30_000, bytes: 32 * 2 ** 30 };

/** Layers that are fetched at the same time. */
const atOnce = 3;

/** A cache could not give what it had promised; the build is to go on without it. */
export class CacheFailure extends Error {
  readonly reference: string;

  constructor(reference: string, cause: BerthError) {
    super(cause.message, { cause });
    this.reference = reference;
  }
}

/** A layer that so far is in a registry only, and what to remember when it is here. */
interface FarLayer {
  layer: Layer;
  repository: Repository;
  /** The cache that told of it. */
  reference: string;
  results: [key: string, result: StepResult][];
  fetched: Promise<void> | null;
}

interface LoadedCache {
  reference: string;
  repository: Repository;
  results: ReadonlyMap<string, StepResult>;
}

/** What importing needs of a build's means. */
export type ImportMeans = Pick<BuildMeans, "cache" | "registry" | "registryAuth" | "importLayer">;

/**
 * What caches of registries say about steps, for one build. They are asked when the project knows nothing itself, and what
 * they say is a claim: when something is to be made of a layer it comes from the cache's own repository and is checked.
 * That this host or another project has it is no reason not to, as a digest is no proof that who names it may read the
 * blob. A claim is remembered once its layer is here, together with whose it is.
 */
export class ImportedCaches {
  readonly #means: ImportMeans;
  readonly #report: Pick<BuildReport, "line">;
  readonly #outer: AbortSignal;
  /** Of transfers: the first failure ends the others. */
  readonly #failure = new AbortController();
  readonly #signal: AbortSignal;
  /** By its text. */
  readonly #references: ReadonlyMap<string, ImageReference & { registry: string }>;
  readonly #limits: typeof cacheLimits;
  readonly #far = new Map<string, FarLayer>();
  /** Names of the layers that were far. */
  readonly #here = new Set<string>();
  readonly #turns = new Turns(atOnce);
  #loaded: Promise<readonly LoadedCache[]> | null = null;
  #bytes = 0;

  constructor(
    references: readonly string[],
    means: ImportMeans,
    report: Pick<BuildReport, "line">,
    signal: AbortSignal,
    limits = cacheLimits,
  ) {
    this.#limits = limits;
    this.#references = new Map(references.map((text) => [text, parseRegistryReference(text)]));
    this.#means = means;
    this.#report = report;
    this.#outer = signal;
    this.#signal = AbortSignal.any([signal, this.#failure.signal]);
  }

  /** Whether the build asks this cache. */
  names(reference: string): boolean {
    return this.#references.has(reference);
  }

  /** What the first cache that knows the step says that it made. */
  async find(key: string): Promise<StepResult | null> {
    this.#loaded ??= Promise.all([...this.#references.keys()].map((reference) => this.#load(reference))).then(
      (loaded) => loaded.filter((cache) => cache !== null),
    );
    for (const { reference, repository, results } of await this.#loaded) {
      const known = results.get(key);
      if (known === undefined) continue;
      const result = { ...known, from: reference };
      const { layer } = known;
      const name = layer === null ? "" : layerName(layer);
      if (layer !== null && !this.#far.has(name) && !this.#here.has(name)) {
        this.#far.set(name, { layer, repository, reference, results: [], fetched: null });
      }
      await this.remember(key, result);
      return result;
    }
    return null;
  }

  /** Keeps a result in the project's cache: now, or when its layer is here. */
  async remember(key: string, result: StepResult): Promise<void> {
    const far = this.#farLayer(result.layer);
    if (far === null) await this.#means.cache.keep(key, result);
    else far.results.push([key, result]);
  }

  /** Where a layer is that is not here; null: it is here. */
  repositoryOf(layer: Layer): Repository | null {
    return this.#farLayer(layer)?.repository ?? null;
  }

  /** Makes sure that the layers' blobs are in the store. @throws CacheFailure; the signal's reason */
  async obtain(layers: readonly Layer[]): Promise<void> {
    const ends = await Promise.allSettled(layers.map((layer) => this.#fetched(layer)));
    if (ends.some(({ status }) => status === "rejected")) throw this.#signal.reason;
  }

  #farLayer(layer: Layer | null): FarLayer | null {
    return (layer === null ? undefined : this.#far.get(layerName(layer))) ?? null;
  }

  async #fetched(layer: Layer): Promise<void> {
    const far = this.#farLayer(layer);
    if (far === null) return;
    far.fetched ??= this.#turns.take(() => this.#fetch(far));
    await far.fetched;
  }

  async #fetch({ layer, repository, reference, results }: FarLayer): Promise<void> {
    this.#signal.throwIfAborted();
    try {
      this.#bytes += layer.sizeBytes;
      if (this.#bytes > this.#limits.bytes) {
        throw new BerthError(
          "layer_too_large",
          `What the build takes from caches has more than ${this.#limits.bytes} bytes.`,
        );
      }
      await this.#means.importLayer(layer, repository, this.#signal);
    } catch (error) {
      this.#outer.throwIfAborted();
      const failure = error instanceof BerthError ? new CacheFailure(reference, error) : error;
      this.#failure.abort(failure);
      throw failure;
    }
    this.#far.delete(layerName(layer));
    this.#here.add(layerName(layer));
    for (const [key, result] of results) await this.#means.cache.keep(key, result);
  }

  /** A cache's list of steps; null, with a line in the log: it can't be had. */
  async #load(text: string): Promise<LoadedCache | null> {
    const reference = this.#references.get(text);
    if (reference === undefined) return null;
    const timeout = AbortSignal.timeout(this.#limits.listMs);
    const signal = AbortSignal.any([this.#outer, timeout]);
    try {
      const auth = this.#means.registryAuth.get(reference.registry) ?? null;
      const { repository, manifest } = await this.#means.registry.resolve(reference, auth, signal);
      const results = await readCache(repository, manifest, signal);
      this.#report.line(0, "info", `#0 cache: ${text} knows ${new Set(results.values()).size} steps`);
      return { reference: text, repository, results };
    } catch (error) {
      this.#outer.throwIfAborted();
      if (!(error instanceof BerthError) && !timeout.aborted) throw error;
      const why = error instanceof BerthError ? error.message : "Its registry is too slow.";
      this.#report.line(0, "info", `#0 warning: the cache ${text} is not used. ${why}`);
      return null;
    }
  }
}
