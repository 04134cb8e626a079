import type { CopyStep } from "../../build/step.ts";
import { type ByteString, toByteString } from "../../image/layer-entry.ts";
import type { FileTree } from "./file-entry.ts";

/** What a COPY or ADD takes from one tree. */
export interface CopySource {
  tree: FileTree;
  /** As `CopyStep.sources`. */
  patterns: readonly ByteString[];
  /** Unpack files that are archives. */
  unpack: boolean;
}

/** What the step takes from its origin. */
export function originSource(step: CopyStep, tree: FileTree): CopySource {
  return { tree, patterns: step.sources.map(toByteString), unpack: step.unpack };
}
