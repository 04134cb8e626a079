import { newId } from "../../core/ids.ts";
import { defaultBranch, refName, trackedRefs } from "../../core/source.ts";
import { type Scope, transact } from "../../db/scope.ts";
import { buildHead } from "../../db/source-builds.ts";
import { findSource, type SourceRow } from "../../db/sources.ts";
import type { Services } from "../context.ts";
import { checkOpenJobs } from "../jobs.ts";
import { commitOf, storeCommit } from "./commit-context.ts";
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
 * Builds what the source's branches are at, where that was not built yet. It asks the repository, not the push: so it can
 * be done at any time and any number of times, and a push whose end nobody saw is made good at the next request. In turn,
 * so that an older commit is never built after a newer one.
 */
export async function buildBranches(services: Services, pushed: PushedTo): Promise<BuiltBranch[]> {
  const { sql, blobs, limits } = services;
  const { scope, repository, address } = pushed;
  const source = await findSource(sql, scope, pushed.source.id);
  if (source === null) return [];
  const built: BuiltBranch[] = [];
  for (const tracked of trackedRefs(source.branches)) {
    const ref = tracked === defaultBranch ? await chooseDefault(repository) : tracked;
    const commit = ref === null ? null : await commitOf(repository, ref);
    if (ref === null || commit === null) continue;
    const last = source.heads.find((head) => head.ref === tracked);
    if (last?.commit === commit) {
      built.push({ ref, commit, buildId: last.buildId, started: false });
      continue;
    }
    const { subdirectory } = source;
    const stored = await storeCommit(repository, commit, subdirectory, blobs, limits.contextBytes);
    const context = { kind: "git" as const, url: address, ref: refName(ref), subdirectory, commit, ...stored };
    const made = await transact(sql, scope, async (tx) => {
      await checkOpenJobs(tx, scope.projectId);
      const building = { id: source.id, projectId: scope.projectId, build: source.build };
      return buildHead(tx, building, { ref: tracked, context, job: { id: newId("job") } });
    });
    built.push({ ref, commit, ...made });
  }
  return built;
}

/** The repository's default branch; of one that was pushed to for the first time `main`, else `master`, else what came. */
async function chooseDefault(repository: string): Promise<string | null> {
  const now = await askGit(repository, ["symbolic-ref", "HEAD"]);
  if (now !== null && (await commitOf(repository, now)) !== null) return now;
  const branches = (await askGit(repository, ["for-each-ref", "--format=%(refname)", "refs/heads/"])) ?? "";
  const names = branches.split("\n").filter((name) => name !== "");
  const usual = ["refs/heads/main", "refs/heads/master"].find((name) => names.includes(name)) ?? names[0];
  if (usual === undefined) return null;
  await askGit(repository, ["symbolic-ref", "HEAD", usual]);
  return usual;
}
