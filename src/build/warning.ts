import type { Location } from "./source.ts";

/**
 * What is looked for besides errors, under the names of BuildKit's build checks, which `# check=skip=…` uses.
 * UnusedBuildArg is not one of BuildKit's.
 */
export type CheckName =
  | "ConsistentInstructionCasing"
  | "DuplicateStageName"
  | "ExposeInvalidFormat"
  | "ExposeProtoCasing"
  | "FromAsCasing"
  | "FromPlatformFlagConstDisallowed"
  | "InvalidDefaultArgInFrom"
  | "JSONArgsRecommended"
  | "LegacyKeyValueFormat"
  | "MaintainerDeprecated"
  | "MultipleInstructionsDisallowed"
  | "NoEmptyContinuation"
  | "RedundantTargetPlatform"
  | "ReservedStageName"
  | "SecretsUsedInArgOrEnv"
  | "StageNameCasing"
  | "UndefinedArgInFrom"
  | "UndefinedVar"
  | "UnusedBuildArg"
  | "WorkdirRelativePath";

/** Something in a Dockerfile that works but is probably not meant. */
export interface Warning {
  check: CheckName;
  message: string;
  at: Location;
}

const secretWords = new Set([
  "apikey",
  "auth",
  "credential",
  "credentials",
  "key",
  "password",
  "pword",
  "passwd",
  "secret",
  "token",
]);
const publicWords = new Set(["public", "file", "id", "url"]);

/** Whether a variable's name says that it holds a secret, which an image would show to everybody. */
export function looksSecret(name: string): boolean {
  const words = name.toLowerCase().split("_");
  return words.some((word) => secretWords.has(word)) && !words.some((word) => publicWords.has(word));
}
