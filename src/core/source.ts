import type { BuildRequest } from "./build-request.ts";

/** Who hosts a source's repository and how its webhooks are signed; `berth`: what is pushed to Berth itself. */
export const sourceProviders = ["github", "gitlab", "gitea", "forgejo", "bitbucket", "generic", "berth"] as const;
export type SourceProvider = (typeof sourceProviders)[number];

/** What a source's builds are asked, but for the context. */
export type SourceBuild = Omit<BuildRequest, "source">;

/** What a `source` job is asked: to read a ref of the source, and to build it. */
export interface SourcePayload {
  ref: string;
  /** Also when nothing has changed. */
  again?: true;
  /** The job of the build that may come of it. */
  buildJobId: string;
  /** Credentials, sealed for this job and for the build's (`jobSealPurpose`), and the origin that they are for alone. */
  auth?: { origin: string; read: string; build: string };
  /** Users at registries, sealed for the build's job. */
  registryAuth?: string;
}

/** For what a source's users at registries are sealed (core/keys.ts) in its row. */
export function registryAuthPurpose(sourceId: string): string {
  return `registryAuth:${sourceId}`;
}

export const deliveryStatuses = ["received", "ignored", "building", "built", "failed"] as const;
export type DeliveryStatus = (typeof deliveryStatuses)[number];

/** Stands for the default branch, whatever its name is. */
export const defaultBranch = "HEAD";

/** The refs of a source that build: of the branches that it names, or else the default branch. */
export function trackedRefs(branches: readonly string[]): string[] {
  return branches.length === 0 ? [defaultBranch] : branches.map((name) => `refs/heads/${name}`);
}

/** How messages call a ref. */
export function refName(ref: string): string {
  return ref === defaultBranch ? "the default branch" : ref.replace(/^refs\/(?:heads|tags)\//, "");
}
