import { createHash } from "node:crypto";
import { select } from "../../build/select.ts";
import type { CopyStep } from "../../build/step.ts";
import { toByteString } from "../../image/layer-entry.ts";
import { abortable } from "./abortable.ts";
import type { ContextEntry } from "./context-tree.ts";
import type { CopySource } from "./copy-source.ts";
import type { FileEntry, FileTree } from "./file-entry.ts";

/**
 * A digest of all that a COPY or ADD takes: places, bytes, modes, owners, links. Times are no part, so that a fresh
 * clone of the same commit, or a program compiled again to the same bytes, changes nothing.
 * @throws the signal's reason
 */
export async function copiedContent(
  sources: readonly CopySource[],
  step: Pick<CopyStep, "excludes" | "parents">,
  signal: AbortSignal,
): Promise<string> {
  const hash = createHash("sha256");
  const how = { excludes: step.excludes.map(toByteString), parents: step.parents, intoDirectory: true };
  for (const { tree, patterns } of sources) {
    for await (const { entry, from, to } of abortable(select(tree, { ...how, sources: patterns }), signal)) {
      const { type, mode, uid, gid, size, target } = entry;
      const xattrs = [...entry.xattrs].map(([name, value]) => [name, Buffer.from(value).toString("hex")]);
      const content = type === "file" ? await contentDigest(tree, from, entry, signal) : "";
      hash.update(JSON.stringify([to, type, mode, uid, gid, size, target, xattrs, content]));
    }
  }
  return hash.digest("hex");
}

async function contentDigest(tree: FileTree, path: string, entry: FileEntry, signal: AbortSignal): Promise<string> {
  if ("sha256" in entry) return (entry as unknown as ContextEntry).sha256;
  const hash = createHash("sha256");
  for await (const part of abortable(tree.read(path, entry), signal)) hash.update(part);
  return hash.digest("hex");
}
