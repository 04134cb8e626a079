import { BerthError } from "../../core/errors.ts";
import { commitPattern, type GitAuth } from "../../core/git-source.ts";
import { defaultBranch, refName } from "../../core/source.ts";
import { fetchFailure } from "./git-failure.ts";
import { startGit } from "./git-program.ts";
import { type GitRemote, gitRemote } from "./git-remote.ts";
import type { GitHost } from "./git-tree.ts";

const maxReadMs = 30_000;
/** Bytes of the answer, and of git's memory: a server may claim any number of refs, and any that end alike. */
const maxAnswerBytes = 64 * 1024;
const addressBytes = 512 * 2 ** 20;

/** What a ref of a repository is now. */
export interface GitHead {
  commit: string;
  /** The branch's name; null: the repository does not say what its default branch is called. */
  branch: string | null;
}

/**
 * Reads a ref (a full name, or HEAD) of a repository elsewhere; nothing of it is fetched.
 * @throws BerthError `repository_*`, `git_auth_failed`, `ref_not_found`, `invalid_context`, `address_refused`; the signal's
 * reason
 */
export async function readHead(
  repository: { url: string; ref: string; auth: GitAuth | null },
  means: Pick<GitHost, "sandboxes" | "outbound">,
  signal: AbortSignal,
): Promise<GitHead> {
  const { url, ref, auth } = repository;
  const remote = await gitRemote(new URL(url), auth, means.outbound);
  const slot = means.sandboxes.takeSlot();
  try {
    const answer = await listRef(repository, remote, means.sandboxes.idBaseOf(slot), signal);
    const lines = answer.split("\n").map((line) => line.split("\t"));
    const commit = lines.find(([id = "", name]) => name === ref && commitPattern.test(id))?.[0];
    if (commit === undefined) {
      throw new BerthError("ref_not_found", `The git repository ${JSON.stringify(url)} has no ${branchOf(ref)}.`);
    }
    const symbolic = lines.find(([target = "", name]) => name === ref && target.startsWith("ref: "))?.[0] ?? ref;
    const branch = /^(?:ref: )?refs\/heads\/(.+)$/.exec(symbolic)?.[1] ?? null;
    return { commit, branch };
  } finally {
    means.sandboxes.freeSlot(slot);
  }
}

const branchOf = (ref: string) =>
  ref === defaultBranch ? "default branch with a commit" : `branch ${JSON.stringify(refName(ref))}`;

/** git's lines `<id> TAB <name>`, before them of HEAD `ref: <target> TAB HEAD`. */
async function listRef(
  { url, ref }: { url: string; ref: string },
  remote: GitRemote,
  uid: number,
  signal: AbortSignal,
): Promise<string> {
  const timeout = AbortSignal.timeout(maxReadMs);
  const args = [...remote.options, "ls-remote", "--quiet", "--symref", "--end-of-options", url, ref];
  const place = { repository: "/nonexistent", uid, addressBytes };
  const run = startGit(place, args, AbortSignal.any([signal, timeout]), remote.env);
  let answer = "";
  for await (const chunk of run.output) {
    answer += (chunk as Buffer).toString("latin1");
    if (answer.length > maxAnswerBytes) run.stop();
  }
  const { exitCode, stderr } = await run.ended;
  signal.throwIfAborted();
  if (timeout.aborted) throw fetchFailure(url, ref, "reading took too long", remote.loggedIn);
  if (exitCode !== 0) throw fetchFailure(url, ref, stderr, remote.loggedIn);
  return answer;
}
