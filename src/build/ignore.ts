import { BerthError } from "../core/errors.ts";
import { matchPath } from "./glob.ts";
import { cleanPath } from "./paths.ts";

const maxPatterns = 1000;

interface Rule {
  pattern: readonly string[];
  /** `!`: what matches is kept. */
  keep: boolean;
}

/** Patterns of a `.dockerignore` or of `--exclude`: the last rule that matches a path or a parent of it decides. */
export class IgnoreRules {
  readonly #rules: readonly Rule[];

  /** @throws BerthError `invalid_context` for too many patterns. */
  constructor(patterns: readonly string[]) {
    if (patterns.length > maxPatterns) {
      throw new BerthError(
        "invalid_context",
        `There are ${patterns.length} ignore patterns; up to ${maxPatterns} are allowed.`,
      );
    }
    this.#rules = patterns.flatMap((text) => {
      const keep = text.startsWith("!");
      const pattern = cleanPath(keep ? text.slice(1).trim() : text).slice(1);
      return pattern === "" ? [] : [{ pattern: pattern.split("/"), keep }];
    });
  }

  /** The patterns in the text of a `.dockerignore`: one a line, `#` begins a comment. */
  static parse(text: string): IgnoreRules {
    const lines = text.replace(/^\uFEFF/, "").split(/\r?\n/);
    return new IgnoreRules(
      lines
        .filter((line) => !line.startsWith("#"))
        .map((line) => line.trim())
        .filter((line) => line !== ""),
    );
  }

  get empty(): boolean {
    return this.#rules.length === 0;
  }

  /** Whether a path (components without leading slash) is left out. */
  ignores(path: readonly string[]): boolean {
    let ignored = false;
    for (const { pattern, keep } of this.#rules) {
      // A rule that would not change the answer need not be matched.
      if (keep !== ignored) continue;
      for (let length = path.length; length > 0; length--) {
        if (matchPath(pattern, path.slice(0, length))) {
          ignored = !keep;
          break;
        }
      }
    }
    return ignored;
  }
}
