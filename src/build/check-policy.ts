import { dockerfileError, type Location, quoted } from "./source.ts";
import { didYouMean } from "./suggest.ts";
import type { Warning } from "./warning.ts";

/** Names of checks that say nothing. */
export type SkippedChecks = "all" | readonly string[];

/** What a Dockerfile wants done with warnings: `# check=skip=A,B;error=true`. */
export interface CheckPolicy {
  skip: SkippedChecks;
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
    if (key === "skip") policy.skip = skippedChecks(value);
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

function skippedChecks(text: string): SkippedChecks {
  return text === "all" ? text : text.split(",").map((name) => name.trim());
}

/** What a comment above an instruction has skipped there, `# check=skip=A,B and why`; null: it is any other comment. */
export function skippedByComment(comment: string): SkippedChecks | null {
  const skip = /^#\s*check\s*=\s*(?:[^\s;]*;)*skip=([^\s;]+)/i.exec(comment)?.[1];
  return skip === undefined ? null : skippedChecks(skip);
}

/**
 * The warnings that the policy and the comments above instructions (`skips`, by line) let through, each once, by line.
 * @throws BerthError when one of them is to fail the build.
 */
export function applyPolicy(
  warnings: readonly Warning[],
  { skip, error }: CheckPolicy,
  skips: ReadonlyMap<number, SkippedChecks>,
): Warning[] {
  const seen = new Set<string>();
  const skipped = (names: SkippedChecks, check: string) => names === "all" || names.includes(check);
  const kept = warnings
    .filter(({ check, message, at }) => {
      const same = `${at.line} ${check} ${message}`;
      if (skipped(skip, check) || skipped(skips.get(at.line) ?? [], check) || seen.has(same)) return false;
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
