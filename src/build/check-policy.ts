import { dockerfileError, type Location, quoted } from "./source.ts";
import { didYouMean } from "./suggest.ts";
import type { Warning } from "./warning.ts";

/** What a Dockerfile wants done with warnings: `# check=skip=A,B;error=true`. */
export interface CheckPolicy {
  /** Names of checks that say nothing. */
  skip: "all" | readonly string[];
  /** A warning makes the build fail. */
  error: boolean;
}

export const everyCheck: CheckPolicy = { skip: [], error: false };

/**
 * The policy in the text of a `check` directive or of the build argument `BUILDKIT_DOCKERFILE_CHECK`.
 * @throws BerthError at `at`.
 */
export function parseCheckPolicy(text: string, at: Location): CheckPolicy {
  const policy: CheckPolicy = { ...everyCheck };
  for (const option of text.split(";")) {
    const equals = option.indexOf("=");
    const key = option.slice(0, Math.max(0, equals)).trim();
    const value = option.slice(equals + 1).trim();
    if (key === "skip") policy.skip = value === "all" ? value : value.split(",").map((name) => name.trim());
    else if (key === "error") {
      if (!/^(?:true|false)$/.test(value)) {
        throw dockerfileError(at, `error must be true or false, not ${quoted(value)}.`);
      }
      policy.error = value === "true";
    } else if (key !== "experimental") {
      // No check is experimental here, so that option chooses among none.
      const hint = didYouMean(key, ["skip", "error", "experimental"]) || "; there are skip, error and experimental.";
      throw dockerfileError(at, `check has no option ${quoted(option.trim())}${hint}`);
    }
  }
  return policy;
}

/** The warnings that the policy lets through, each once, by line. @throws BerthError when one of them is to fail the build. */
export function applyPolicy(warnings: readonly Warning[], { skip, error }: CheckPolicy): Warning[] {
  const seen = new Set<string>();
  const kept = warnings
    .filter(({ check, message, at }) => {
      const same = `${at.line} ${check} ${message}`;
      if (skip === "all" || skip.includes(check) || seen.has(same)) return false;
      seen.add(same);
      return true;
    })
    .sort((a, b) => a.at.line - b.at.line);
  const [first] = kept;
  if (error && first !== undefined) {
    const more = kept.length === 1 ? "" : ` (and ${kept.length - 1} more)`;
    throw dockerfileError(first.at, `the check ${first.check} fails: ${first.message}${more}.`);
  }
  return kept;
}
