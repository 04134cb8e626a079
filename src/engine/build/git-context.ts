import type { GitSource } from "../../core/git-source.ts";
import { type GitHost, withGitTree } from "./git-tree.ts";
import type { BuildMeans } from "./ports.ts";
import type { BuildReport } from "./report.ts";

/** How large the tar that the tree becomes may be. */
const maxTarBytes = 4 * 2 ** 30;

/** What fetching a context needs of a build's means. */
export interface GitMeans extends GitHost, Pick<BuildMeans, "blobs" | "gitAuth"> {
  /** Records what the source was found to be. */
  fetched: (source: GitSource) => Promise<void>;
}

/**
 * The digest of the tar, in the blob store, of the source's tree: what was fetched before by an earlier attempt, or else
 * one commit fetched now.
 * @throws BerthError `invalid_context`, and as `withGitTree`; the signal's reason
 */
export async function gitContext(
  source: GitSource,
  means: GitMeans,
  report: BuildReport,
  signal: AbortSignal,
): Promise<string> {
  if (source.digest !== null && (await means.blobs.size(source.digest)) !== null) return source.digest;
  report.line(0, "info", `#0 git: fetching ${source.ref ?? source.commit ?? "the default branch"} of ${source.url}`);
  return withGitTree(source, means.gitAuth, means, signal, async ({ commit, tar, whole }) => {
    report.line(0, "info", `#0 git: commit ${commit}`);
    // A tar that was cut off is not kept.
    const { digest, sizeBytes } = await means.blobs.put(tar, { maxBytes: maxTarBytes, confirm: whole });
    await means.fetched({ ...source, commit, digest, sizeBytes });
    return digest;
  });
}
