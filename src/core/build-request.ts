import type { GitSource } from "./git-source.ts";
import type { Layer } from "./image.ts";

/** An uploaded tar (plain, gzip or zstd) in the blob store. */
export interface ArchiveSource {
  kind: "archive";
  digest: string;
  sizeBytes: number;
}

/** A tar (also gzip, zstd, bzip2 or xz) behind a URL. */
export interface TarSource {
  kind: "tar";
  url: string;
  /** `sha256:…` that it must have; null: whatever it has. */
  checksum: string | null;
  /** Digest and size of what was downloaded, in the blob store; null: nothing yet. */
  digest: string | null;
  sizeBytes: number | null;
}

/** How the layers that a build makes can be compressed. */
export const layerCompressions = ["gzip", "zstd"] as const;
export type LayerCompression = (typeof layerCompressions)[number];

/** A build as it was asked for, and what its source was found to be; kept in `builds.request`. Secrets are never here. */
export interface BuildRequest {
  source: ArchiveSource | GitSource | TarSource;
  /** Path of the Dockerfile within the context. */
  dockerfile: string;
  target?: string;
  args: Record<string, string>;
  tags: string[];
  labels: Record<string, string>;
  /** Named contexts, as `parseNamedContext` takes them; absent: none. */
  contexts?: Record<string, string>;
  platform?: string;
  noCache: boolean;
  /** Ask the registry again for base images that the project has. */
  pull: boolean;
  /** Build caches of registries to take finished steps from, the first one first; absent: none. */
  cacheFrom?: string[];
  /** Where in a registry the build's own steps go; absent: nowhere. */
  cacheTo?: string;
  /** Whether the image says itself which steps made its layers; absent: no. */
  inlineCache?: boolean;
  /** Of the layers that it makes; absent: gzip. */
  compression?: LayerCompression;
  limits: { cpus: number; memory: number; timeoutSeconds: number };
}

/** What a finished step left in the build cache: the layer it made (null: nothing changed), and when (RFC 3339). */
export interface StepResult {
  layer: Layer | null;
  created: string;
  /** All keys that the step had; absent: only the one that it is found by. */
  keys?: string[];
  /** The cache that says so, a reference; absent: a build of the project made it. It counts for builds that name that cache. */
  from?: string;
}

/** A file as it was downloaded, and what its server is asked to compare (RFC 9110, 13.1): the entity tag, or else the time. */
export interface KnownFile {
  etag: string | null;
  /** Last-Modified, in seconds since 1970; 0: none. */
  modified: number;
  /** In hex. */
  sha256: string;
  sizeBytes: number;
}

/** Something in a Dockerfile that works but is probably not meant; `check` is a build check's name. `line` counts from 1. */
export interface BuildWarningView {
  check: string;
  message: string;
  line: number;
}

/** A step of a build as `GET /v1/builds/{id}` shows it. `line` counts from 1. */
export interface BuildStepView {
  index: number;
  stage: string;
  instruction: string;
  line: number;
  status: "pending" | "running" | "succeeded" | "failed" | "cancelled";
  cached: boolean;
  durationMs: number | null;
}
