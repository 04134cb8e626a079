/** A layer as images list it, lowest first. `digest` is of the compressed blob, `diffId` of the plain tar. */
export interface Layer {
  digest: string;
  diffId: string;
  sizeBytes: number;
  mediaType: string;
}

/** The part of an image's config that says how to run it (OCI image spec v1.1, config.md, `config`). */
export interface ImageProcess {
  User?: string;
  ExposedPorts?: Record<string, Record<string, never>>;
  Env?: string[];
  Entrypoint?: string[] | null;
  Cmd?: string[] | null;
  Volumes?: Record<string, Record<string, never>>;
  WorkingDir?: string;
  Labels?: Record<string, string>;
  StopSignal?: string;
  Shell?: string[];
  Healthcheck?: Healthcheck;
  /** Instructions that run when a stage builds on the image. */
  OnBuild?: string[];
}

/** How to tell whether a container works (Docker image spec v1.3); durations in nanoseconds, absent: the default. */
export interface Healthcheck {
  /** `["NONE"]`, `["CMD", …]` or `["CMD-SHELL", line]`. */
  Test: string[];
  Interval?: number;
  Timeout?: number;
  StartPeriod?: number;
  StartInterval?: number;
  Retries?: number;
}

/** An image's config (OCI image spec v1.1, config.md); unknown fields are kept as they came. */
export interface ImageConfig {
  architecture: string;
  os: string;
  variant?: string;
  created?: string;
  author?: string;
  config?: ImageProcess;
  rootfs: { type: "layers"; diff_ids: string[] };
  history?: { created?: string; created_by?: string; comment?: string; author?: string; empty_layer?: boolean }[];
}

/** An image with all that is needed to run or extend it. */
export interface Image {
  digest: string;
  mediaType: string;
  config: ImageConfig;
  layers: Layer[];
}
