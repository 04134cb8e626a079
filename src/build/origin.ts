import type { ContextFiles } from "../core/named-context.ts";

/** Where COPY and mounts read from: the build context, another stage, an image (by `NeededImage.key`), or a named context. */
export type CopyOrigin =
  | { kind: "context" }
  | { kind: "stage"; stage: number }
  | { kind: "image"; key: string }
  | { kind: "files"; source: ContextFiles };
