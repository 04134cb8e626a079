import { commitPattern } from "../../core/git-source.ts";
import { newId } from "../../core/ids.ts";
import { defaultBranch, refName, sealedForBuild, trackedRefs } from "../../core/source.ts";
import { findProject } from "../../db/projects.ts";
import { type Scope, transact } from "../../db/scope.ts";
import { buildHead } from "../../db/source-builds.ts";
import { findSource, type SourceRow } from "../../db/sources.ts";
import type { Services } from "../context.ts";
import { asBerthError } from "../problem.ts";
import { storeCommit } from "./commit-context.ts";
import { askGit } from "./program.ts";

/** A repository that is pushed to Berth, with its source and where clients find it. */
export interface PushedTo {
  scope: Scope;
  source: Pick<SourceRow, "id" | "name">;
  repository: string;
  /** `/git/<project>/<source>.git` */
  address: string;
}

/** A branch that builds, and the build of the commit that it is at. */
export interface BuiltBranch {
  /** `refs/heads/…` */
  ref: string;
  commit: string;
  /** null: it was built, and the build is no more. */
  buildId: string | null;
  /** Whether the build began now. */
  started: boolean;
}

/**
 * Builds what the source's branches are at, where that was not built yet. It asks the repository, not the push, so it can be
 * done at any time and any number of times. To be done in turn, so that an older commit is never built after a newer one.
 * @throws BerthError as `storeCommit` and `buildHead`
 */
export async function buildBranches(services: Services, pushed: PushedTo): Promise<BuiltBranch[]> {
  const { sql, blobs, limits } = services;
  const { scope, repository, address } = pushed;
  const source = await findSource(sql, scope, pushed.source.id);
  if (source === null) return [];
  const branches = await readBranches(repository);
  const built: BuiltBranch[] = [];
  for (const tracked of trackedRefs(source.branches)) {
    const branch = tracked === defaultBranch ? await chooseDefault(repository, branches) : branches.get(tracked);
    if (branch === undefined) continue;
    const { ref, commit } = branch;
    const last = source.heads.find((head) => head.ref === tracked);
    if (last?.commit === commit) {
      built.push({ ref, commit, buildId: last.buildId, started: false });
      continue;
    }
    const { subdirectory } = source;
    const stored = await storeCommit(repository, commit, subdirectory, blobs, limits.contextBytes);
    const context = { kind: "git" as const, url: address, ref: refName(ref), subdirectory, commit, ...stored };
    const made = await transact(sql, scope, async (tx) => {
      const building = { id: source.id, projectId: scope.projectId, build: source.build };
      return buildHead(tx, building, { ref: tracked, context, job: buildJob(services, source) });
    });
    built.push({ ref, commit, ...made });
  }
  return built;
}

/** The job of a source's build, with what the source keeps for it. */
function buildJob({ secretKey }: Services, { id: sourceId, seals }: SourceRow) {
  const id = newId("job");
  return { id, payload: { ...sealedForBuild(secretKey, sourceId, seals, id) } };
}

interface Branch {
  /** `refs/heads/…` */
  ref: string;
  commit: string;
  isDefault: boolean;
}

/** The repository's branches, by their full names. */
async function readBranches(repository: string): Promise<Map<string, Branch>> {
  const format = "--format=%(HEAD) %(objectname) %(refname)";
  const text = (await askGit(repository, ["for-each-ref", format, "refs/heads/"])) ?? "";
  return new Map(
    text.split("\n").flatMap((line): [string, Branch][] => {
      const [, mark = "", commit = "", ref = ""] = /^(.) (\S+) (.+)$/.exec(line) ?? [];
      return commitPattern.test(commit) ? [[ref, { ref, commit, isDefault: mark === "*" }]] : [];
    }),
  );
}

/** The default branch; of a repository that was pushed to for the first time `main`, else `master`, else what came. */
async function chooseDefault(repository: string, branches: ReadonlyMap<string, Branch>): Promise<Branch | undefined> {
  const all = [...branches.values()];
  const now = all.find(({ isDefault }) => isDefault);
  if (now !== undefined) return now;
  const first = branches.get("refs/heads/main") ?? branches.get("refs/heads/master") ?? all[0];
  if (first !== undefined) await askGit(repository, ["symbolic-ref", "HEAD", first.ref]);
  return first;
}

/**
 * Begins the builds of pushes whose builds may not have begun. What can't be begun now is tried again the next time; a push
 * that can never be built is done with. One repository's trouble holds up no other.
 */
export async function recoverPushes(services: Services): Promise<void> {
  const { sql, repositories, log } = services;
  for await (const { projectId, sourceId, path, known } of repositories.unfinished()) {
    const scope = { projectId };
    try {
      const [project, source] = await Promise.all([
        findProject(sql, scope, projectId),
        findSource(sql, scope, sourceId),
      ]);
      if (project !== null && source !== null) {
        const address = `/git/${project.name}/${source.name}.git`;
        await repositories.inTurn(path, () => buildBranches(services, { scope, source, repository: path, address }));
      }
      await known();
    } catch (thrown) {
      log.warn({ err: thrown, source: sourceId }, "a push's builds did not begin");
      if (isFinal(thrown)) await known();
    }
  }
}

/** Whether builds that did not begin for this reason never will: not when a retry helps, or when other jobs are in the way. */
export function isFinal(thrown: unknown): boolean {
  const error = asBerthError(thrown);
  return !error.retryable && error.status < 500 && error.code !== "quota_exceeded";
}
