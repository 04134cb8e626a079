import { BerthError } from "../../core/errors.ts";
import { commitPattern, type GitSource } from "../../core/git-source.ts";
import type { BlobStore } from "../../image/blobs.ts";
import { askGit, startGit } from "./program.ts";

/**
 * Stores a commit's tree, or a directory of it, as the tar of a build's context, as a checkout would have it: what a
 * worker of any host builds from.
 * @throws BerthError `ref_not_found` when it has no such directory, `body_too_large`
 */
export async function storeCommit(
  repository: string,
  commit: string,
  subdirectory: string | null,
  blobs: BlobStore,
  maxBytes: number,
): Promise<Pick<GitSource, "digest" | "sizeBytes">> {
  const tree = subdirectory === null ? commit : await directoryCommit(repository, commit, subdirectory);
  const run = startGit(["archive", "--format=tar", tree], { env: { GIT_DIR: repository } });
  run.stdin.end();
  run.stderr.resume();
  try {
    // A tar that was cut off is not kept.
    const confirm = async () => {
      const { exitCode } = await run.ended;
      if (exitCode !== 0) throw new Error(`git archive failed (${exitCode ?? "killed"})`);
    };
    return await blobs.put(run.stdout, { maxBytes, confirm });
  } finally {
    run.stop();
  }
}

/**
 * A commit whose tree is the directory, with the same time: git gives files the commit's time, or else the present one, and
 * the same source has to give the same tar.
 */
async function directoryCommit(repository: string, commit: string, subdirectory: string): Promise<string> {
  const tree = await askGit(repository, ["rev-parse", "--verify", "--quiet", `${commit}:${subdirectory}`]);
  const kind = tree !== null && commitPattern.test(tree) ? await askGit(repository, ["cat-file", "-t", tree]) : null;
  if (tree === null || kind !== "tree") {
    const directory = JSON.stringify(subdirectory);
    throw new BerthError("ref_not_found", `The commit ${commit} has no directory ${directory}.`);
  }
  const seconds = (await askGit(repository, ["log", "-1", "--format=%ct", commit])) ?? "0";
  const person = (role: string) => ({
    [`GIT_${role}_NAME`]: "berth",
    [`GIT_${role}_EMAIL`]: "berth@localhost",
    [`GIT_${role}_DATE`]: `@${seconds} +0000`,
  });
  const env = { ...person("AUTHOR"), ...person("COMMITTER") };
  const made = await askGit(repository, ["commit-tree", "-m", "context", tree], env);
  if (made === null) throw new Error("git commit-tree failed");
  return made;
}
