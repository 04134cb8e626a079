import { chown, mkdir, mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import type { Readable } from "node:stream";
import { text } from "node:stream/consumers";
import { BerthError } from "../../core/errors.ts";
import { commitPattern, type GitAddress, type GitAuth } from "../../core/git-source.ts";
import type { OutboundPolicy } from "../../image/outbound.ts";
import type { Sandboxes } from "../../isolation/sandbox.ts";
import { fetchFailure } from "./git-failure.ts";
import { type GitPlace, startGit } from "./git-program.ts";
import { type GitRemote, gitRemote } from "./git-remote.ts";

/** How long a fetch may take. */
const maxFetchMs = 10 * 60_000;

/** What fetching needs of the host. */
export interface GitHost {
  sandboxes: Pick<Sandboxes, "takeSlot" | "idBaseOf" | "freeSlot">;
  outbound: Pick<OutboundPolicy, "addressesOf">;
  /** Directory for what lives as long as the fetch. */
  scratch: string;
}

/** What is asked of a repository: a commit (null: what the ref is now), and the directory that is wanted. */
export interface WantedTree extends Omit<GitAddress, "keepGitDir"> {
  commit: string | null;
  keepGitDir?: boolean;
}

/** A commit's tree as a tar. A reader that keeps the tar awaits `whole` before: it throws when the tar was cut off. */
export interface GitTree {
  commit: string;
  tar: Readable;
  whole: () => Promise<void>;
}

/**
 * Fetches one commit and lets `use` read its tree. Nothing is checked out. Submodules are empty directories, files kept in
 * LFS the pointers that the repository has.
 * @throws BerthError `repository_*`, `git_auth_failed`, `ref_not_found`, `address_refused`; the signal's reason
 */
export async function withGitTree<T>(
  wanted: WantedTree,
  auth: GitAuth | null,
  host: GitHost,
  signal: AbortSignal,
  use: (tree: GitTree) => Promise<T>,
): Promise<T> {
  const remote = await gitRemote(new URL(wanted.url), auth, host.outbound);
  const repository = await mkdtemp(`${host.scratch}/git-`);
  const slot = host.sandboxes.takeSlot();
  const place = { repository, uid: host.sandboxes.idBaseOf(slot) };
  try {
    await prepare(place);
    await local(place, ["init", "--quiet", "--bare", "--template="], signal);
    const revision = await fetchWanted(place, wanted, remote, signal);
    const { commit, seconds } = await fetchedCommit(place, revision, wanted, signal);
    const tree = await contextCommit(place, commit, seconds, wanted.subdirectory, signal);
    const kept = wanted.keepGitDir === true ? await gitDirectory(place, commit, signal) : [];
    return await archive(place, [...kept, tree], signal, (tar, whole) => use({ commit, tar, whole }));
  } finally {
    await rm(repository, { recursive: true, force: true });
    host.sandboxes.freeSlot(slot);
  }
}

/** Makes the directory one that git may write to. Files marked export-ignore belong to the tree: a checkout has them. */
async function prepare({ repository, uid }: GitPlace): Promise<void> {
  await mkdir(`${repository}/info`);
  await writeFile(`${repository}/info/attributes`, "* -export-ignore -export-subst\n");
  await chown(repository, uid, uid);
}

/**
 * Fetches what is wanted and returns how git calls it here. No server finds a commit by the beginning of its id, so that
 * takes all branches with their history.
 */
async function fetchWanted(
  place: GitPlace,
  { url, ref, commit }: WantedTree,
  remote: GitRemote,
  signal: AbortSignal,
): Promise<string> {
  const wanted = commit ?? ref;
  try {
    await fetch(place, url, wanted, ["--depth=1", "--end-of-options", url, wanted ?? "HEAD"], remote, signal);
    return "FETCH_HEAD";
  } catch (error) {
    const unknown = error instanceof BerthError && error.code === "ref_not_found";
    if (!unknown || wanted === null || !/^[0-9a-f]{4,39}$/.test(wanted)) throw error;
    await fetch(place, url, wanted, ["--end-of-options", url, "+refs/heads/*:refs/heads/*"], remote, signal);
    return wanted;
  }
}

async function fetch(
  place: GitPlace,
  url: string,
  wanted: string | null,
  what: readonly string[],
  remote: GitRemote,
  signal: AbortSignal,
): Promise<void> {
  const timeout = AbortSignal.timeout(maxFetchMs);
  const options = ["--quiet", "--no-tags", "--no-recurse-submodules", "--no-auto-maintenance"];
  const args = [...remote.options, "fetch", ...options, ...what];
  const run = startGit(place, args, AbortSignal.any([signal, timeout]), remote.env);
  run.output.resume();
  const { exitCode, stderr } = await run.ended;
  signal.throwIfAborted();
  if (timeout.aborted) throw fetchFailure(url, wanted, "the fetch took too long", remote.loggedIn);
  if (exitCode !== 0) throw fetchFailure(url, wanted, stderr, remote.loggedIn);
}

/** What was fetched: the commit (of a tag, what it points to) and its time in seconds since 1970. */
async function fetchedCommit(
  place: GitPlace,
  revision: string,
  { url, ref }: WantedTree,
  signal: AbortSignal,
): Promise<{ commit: string; seconds: string }> {
  const { output } = await local(place, ["log", "-1", "--format=%H %ct", "--end-of-options", revision], signal, true);
  const [commit = "", seconds = ""] = output.trim().split(" ");
  if (commitPattern.test(commit) && /^\d{1,12}$/.test(seconds)) return { commit, seconds };
  throw new BerthError("ref_not_found", `${JSON.stringify(ref)} of ${JSON.stringify(url)} is no commit.`);
}

/**
 * A commit whose tree is the context. A subdirectory becomes a commit of its own with the same time, since git gives files
 * the commit's time, or else the present one, and the same source has to give the same tar.
 */
async function contextCommit(
  place: GitPlace,
  commit: string,
  seconds: string,
  subdirectory: string | null,
  signal: AbortSignal,
): Promise<string> {
  if (subdirectory === null) return commit;
  const found = await local(place, ["rev-parse", "--verify", "--quiet", `${commit}:${subdirectory}`], signal, true);
  const tree = found.output.trim();
  // Of a submodule it is a commit of another repository.
  const kind = commitPattern.test(tree) ? await local(place, ["cat-file", "-t", tree], signal, true) : null;
  if (kind?.output.trim() !== "tree") {
    const directory = JSON.stringify(subdirectory);
    throw new BerthError("ref_not_found", `The commit ${commit} has no directory ${directory}.`);
  }
  const person = (role: string) => ({
    [`GIT_${role}_NAME`]: "berth",
    [`GIT_${role}_EMAIL`]: "berth@localhost",
    [`GIT_${role}_DATE`]: `@${seconds} +0000`,
  });
  const env = { ...person("AUTHOR"), ...person("COMMITTER") };
  const made = await local(place, ["commit-tree", "-m", "context", tree], signal, false, env);
  return made.output.trim();
}

async function archive<T>(
  place: GitPlace,
  what: readonly string[],
  signal: AbortSignal,
  use: (tar: Readable, whole: () => Promise<void>) => Promise<T>,
): Promise<T> {
  const run = startGit(place, ["archive", "--format=tar", ...what], signal);
  try {
    return await use(run.output, async () => checkEnd("archive", await run.ended, signal));
  } finally {
    run.stop();
    run.output.destroy();
    await run.ended;
  }
}

/**
 * Makes the bare repository the `.git` of a checkout of the commit, and returns the options that add it to an archive.
 * git adds the files itself: with its own id it can read nothing else, whatever it finds there.
 */
async function gitDirectory(place: GitPlace, commit: string, signal: AbortSignal): Promise<string[]> {
  for (const args of [
    ["config", "core.bare", "false"],
    ["update-ref", "refs/remotes/origin/HEAD", commit],
    ["update-ref", "--no-deref", "HEAD", commit],
    ["read-tree", commit],
  ]) {
    await local(place, args, signal);
  }
  const files = await readdir(place.repository, { recursive: true, withFileTypes: true });
  const added = files
    .filter((file) => file.isFile() && file.name !== "FETCH_HEAD" && file.name !== "attributes")
    .map(({ parentPath, name }) => ({
      path: `${parentPath}/${name}`,
      below: parentPath.slice(place.repository.length),
    }))
    .sort((a, b) => (a.path < b.path ? -1 : 1))
    .flatMap(({ path, below }) => [`--prefix=.git${below}/`, `--add-file=${path}`]);
  return [...added, "--prefix="];
}

/** Runs git on what is here. Unless `mayFail`, that it fails is an error of ours and not the tenant's. */
async function local(
  place: GitPlace,
  args: readonly string[],
  signal: AbortSignal,
  mayFail = false,
  env: Readonly<Record<string, string>> = {},
): Promise<{ output: string }> {
  const run = startGit(place, args, signal, env);
  const output = await text(run.output);
  const end = await run.ended;
  if (mayFail) signal.throwIfAborted();
  else checkEnd(args[0] ?? "", end, signal);
  return { output };
}

function checkEnd(command: string, end: { exitCode: number | null; stderr: string }, signal: AbortSignal): void {
  signal.throwIfAborted();
  if (end.exitCode !== 0) throw new Error(`git ${command} failed (${end.exitCode ?? "killed"}): ${end.stderr.trim()}`);
}
