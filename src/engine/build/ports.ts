import type { NeededImage } from "../../build/graph.ts";
import type { BuildWarningView, KnownFile, StepResult, TarSource } from "../../core/build-request.ts";
import type { GitAuth, GitSource } from "../../core/git-source.ts";
import type { Image, Layer } from "../../core/image.ts";
import type { BlobStore } from "../../image/blobs.ts";
import type { HttpClient } from "../../image/http.ts";
import type { OutboundPolicy } from "../../image/outbound.ts";
import type { Registry } from "../../image/registry.ts";
import type { RegistryAuth } from "../../image/registry-auth.ts";
import type { Repository } from "../../image/repository.ts";
import type { Sandboxes } from "../../isolation/sandbox.ts";
import type { FileTree } from "./file-entry.ts";
import type { Leaving } from "./leaving.ts";
import type { StepLayers } from "./step-layers.ts";

/** What finished steps of the project made, by key. */
export interface StepCache {
  find(key: string): Promise<StepResult | null>;
  keep(key: string, result: StepResult): Promise<void>;
}

/** What the project has downloaded before, by URL. */
export interface FileMemory {
  find(url: string): Promise<KnownFile | null>;
  keep(url: string, file: KnownFile): Promise<void>;
}

/** All that running a build needs of the host and of the database. */
export interface BuildMeans {
  blobs: BlobStore;
  layers: StepLayers;
  sandboxes: Sandboxes;
  cache: StepCache;
  /** The image with all its layers on this host. */
  image: (needed: NeededImage, signal: AbortSignal) => Promise<Image>;
  /** Runs `use` on the root that these layers (paths of images, lowest first) make. */
  withRoot: <T>(layers: readonly string[], use: (root: FileTree) => Promise<T>) => Promise<T>;
  /** What came with the build for its secret mounts, by id. */
  secrets: ReadonlyMap<string, string>;
  /** Which addresses git sources may be at. */
  outbound: OutboundPolicy;
  /** Downloads from addresses that it checks in the same way. */
  http: HttpClient;
  files: FileMemory;
  /** What git logs in to the build's repository with. */
  gitAuth: GitAuth | null;
  /** Records what the source was found to be. */
  fetched: (source: GitSource | TarSource) => Promise<void>;
  /** Records what the Dockerfile is warned of. */
  warned: (warnings: readonly BuildWarningView[]) => Promise<void>;
  /** Directory for what lives as long as a build. */
  scratch: string;
  leaving: Leaving;
  /** Where build caches are. */
  registry: Registry;
  /** Users at registries, by registry. */
  registryAuth: ReadonlyMap<string, RegistryAuth>;
  /** Brings a layer of a repository into the blob store, checked; one that the project has is not transferred again. */
  importLayer: (layer: Layer, repository: Repository, signal: AbortSignal) => Promise<unknown>;
}

/** Whose build it is and what its steps may use. */
export interface BuildIdentity {
  buildId: string;
  projectId: string;
  limits: { cpus: number; memory: number };
}
