import type { BuildRequest } from "./build-request.ts";
import { type BuildPayload, jobSealPurpose } from "./job.ts";
import { open, seal } from "./keys.ts";

/** Who hosts a source's repository and how its webhooks are signed; `berth`: what is pushed to Berth itself. */
export const sourceProviders = ["github", "gitlab", "gitea", "forgejo", "bitbucket", "generic", "berth"] as const;
export type SourceProvider = (typeof sourceProviders)[number];

/** What a source's builds are asked, but for the context. */
export type SourceBuild = Omit<BuildRequest, "source">;

/** What of a source is kept encrypted for its builds, by the name that it has in a build's payload. */
const sealedKinds = ["registryAuth", "secrets"] as const;
type SealedKind = (typeof sealedKinds)[number];

/** What is kept so, each as JSON, sealed for `sourceSealPurpose`; null: the source has none. */
export type SourceSeals = Record<SealedKind, string | null>;

/** A `source` job's own: to read a ref of the source, and to build it. What is sealed for builds is so for the build's job. */
export interface SourcePayload extends Pick<BuildPayload, SealedKind> {
  ref: string;
  /** Also when nothing has changed. */
  again?: true;
  /** The repository whose builds may have the secrets; absent: there are none. */
  secretsUrl?: string;
  /** The job of the build that may come of it. */
  buildJobId: string;
  /** Credentials, sealed for this job and for the build's (`jobSealPurpose`), and the origin that they are for alone. */
  auth?: { origin: string; read: string; build: string };
}

/** For what it is sealed (core/keys.ts) in the source's row. */
export function sourceSealPurpose(kind: SealedKind, sourceId: string): string {
  return `${kind}:${sourceId}`;
}

/** What a source keeps for its builds, for the payload of one of their jobs. */
export function sealedForBuild(
  secretKey: string,
  sourceId: string,
  seals: SourceSeals,
  buildJobId: string,
): Pick<BuildPayload, SealedKind> {
  const purpose = jobSealPurpose({ kind: "build", id: buildJobId });
  const resealed = sealedKinds.flatMap((kind) => {
    const kept = seals[kind];
    return kept === null
      ? []
      : [[kind, seal(secretKey, purpose, open(secretKey, sourceSealPurpose(kind, sourceId), kept))]];
  });
  return Object.fromEntries(resealed) as Pick<BuildPayload, SealedKind>;
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
