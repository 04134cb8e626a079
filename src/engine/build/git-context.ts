import { chown, mkdir, rm, writeFile } from "node:fs/promises";
import { text } from "node:stream/consumers";
import { BerthError } from "../../core/errors.ts";
import { commitPattern, type GitSource } from "../../core/git-source.ts";
import type { OutboundPolicy } from "../../image/outbound.ts";
import type { Sandboxes } from "../../isolation/sandbox.ts";
import { fetchFailure } from "./git-failure.ts";
import { type GitPlace, startGit } from "./git-program.ts";
import { type GitRemote, gitRemote } from "./git-remote.ts";
import type { BuildMeans } from "./ports.ts";
import type { BuildReport } from "./report.ts";

/** How long a fetch may take, and how large the tar that the tree becomes may be. */
const maxFetchMs = 10 * 60_000;
const maxTarBytes = 4 * 2 ** 30;

/** What fetching needs of a build's means. */
export interface GitMeans extends Pick<BuildMeans, "blobs" | "scratch" | "fetched" | "gitAuth"> {
  sandboxes: Pick<Sandboxes, "takeSlot" | "idBaseOf" | "freeSlot">;
  outbound: Pick<OutboundPolicy, "addressesOf">;
}

/**
 * The digest of the tar, in the blob store, of the source's tree: what was fetched before by an earlier attempt, or else
 * one commit fetched now. Submodules are empty directories, files kept in LFS the pointers that the repository has.
 * @throws BerthError `repository_*`, `git_auth_failed`, `ref_not_found`, `address_refused`, `invalid_context`; the signal's reason
 */
export async function gitContext(
  source: GitSource,
  means: GitMeans,
  report: BuildReport,
  signal: AbortSignal,
): Promise<string> {
  if (source.digest !== null && (await means.blobs.size(source.digest)) !== null) return source.digest;
  report.line(0, "info", `#0 git: fetching ${source.ref ?? source.commit ?? "the default branch"} of ${source.url}`);
  const remote = await gitRemote(new URL(source.url), means.gitAuth, means.outbound);
  const slot = means.sandboxes.takeSlot();
  const place = { repository: `${means.scratch}/git`, uid: means.sandboxes.idBaseOf(slot) };
  try {
    await prepare(place);
    await local(place, ["init", "--quiet", "--bare", "--template="], signal);
    await fetchCommit(place, source, remote, signal);
    const { commit, seconds } = await fetchedCommit(place, source, signal);
    report.line(0, "info", `#0 git: commit ${commit}`);
    const tree = await contextCommit(place, commit, seconds, source.subdirectory, signal);
    const { digest, sizeBytes } = await archive(place, tree, means, signal);
    await means.fetched({ ...source, commit, digest, sizeBytes });
    return digest;
  } finally {
    await rm(place.repository, { recursive: true, force: true });
    means.sandboxes.freeSlot(slot);
  }
}

/** An empty directory that git may write to. Files marked export-ignore belong to the context: a checkout has them. */
async function prepare({ repository, uid }: GitPlace): Promise<void> {
  await mkdir(repository, { mode: 0o700 });
  await mkdir(`${repository}/info`);
  await writeFile(`${repository}/info/attributes`, "* -export-ignore -export-subst\n");
  await chown(repository, uid, uid);
}

async function fetchCommit(place: GitPlace, source: GitSource, remote: GitRemote, signal: AbortSignal): Promise<void> {
  const { url } = source;
  const ref = source.commit ?? source.ref;
  const timeout = AbortSignal.timeout(maxFetchMs);
  const options = ["--quiet", "--depth=1", "--no-tags", "--no-recurse-submodules", "--no-auto-maintenance"];
  const args = [...remote.options, "fetch", ...options, "--end-of-options", url, ref ?? "HEAD"];
  const run = startGit(place, args, AbortSignal.any([signal, timeout]), remote.env);
  run.output.resume();
  const { exitCode, stderr } = await run.ended;
  signal.throwIfAborted();
  if (timeout.aborted) throw fetchFailure(url, ref, "the fetch took too long", remote.loggedIn);
  if (exitCode !== 0) throw fetchFailure(url, ref, stderr, remote.loggedIn);
}

/** What was fetched: the commit (of a tag, what it points to) and its time in seconds since 1970. */
async function fetchedCommit(
  place: GitPlace,
  { url, ref }: GitSource,
  signal: AbortSignal,
): Promise<{ commit: string; seconds: string }> {
  const { output } = await local(place, ["log", "-1", "--format=%H %ct", "FETCH_HEAD"], signal, true);
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
  const kind = commitPattern.test(tree) ? await local(place, ["cat-file", "-t", tree], signal) : null;
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

async function archive(
  place: GitPlace,
  commit: string,
  { blobs }: GitMeans,
  signal: AbortSignal,
): Promise<{ digest: string; sizeBytes: number }> {
  const run = startGit(place, ["archive", "--format=tar", commit], signal);
  try {
    // A tar that was cut off is not kept.
    const confirm = async () => checkEnd("archive", await run.ended, signal);
    return await blobs.put(run.output, { maxBytes: maxTarBytes, confirm });
  } finally {
    run.stop();
    run.output.destroy();
    await run.ended;
  }
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
