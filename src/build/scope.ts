import { expand } from "./expand.ts";
import type { ArgInstruction } from "./instruction.ts";
import type { Location } from "./source.ts";
import { didYouMean } from "./suggest.ts";
import type { CheckName, Warning } from "./warning.ts";

/** Build arguments that need no ARG: they are in RUN's environment, but in no key, history or image. */
export const proxyNames: ReadonlySet<string> = new Set(
  ["HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"].flatMap((name) => [name, name.toLowerCase()]),
);

/** Build arguments that tell a builder something and need no ARG. */
export const builtInArgs = /^(?:BUILDKIT_\w+|SOURCE_DATE_EPOCH)$/;

/**
 * The variables at one point of a stage. ARG and ENV share one space, as in BuildKit: the later of two with one name
 * counts while building; only ENV goes into the image.
 */
export class Scope {
  readonly variables: Map<string, string>;
  /** Declared ARGs in order; undefined: without a value. */
  readonly args: Map<string, string | undefined>;
  readonly #escape: string;
  readonly #warnings: Warning[];
  /** What a variable that is not set is a case of. */
  readonly #check: CheckName;

  constructor(
    escape: string,
    warnings: Warning[],
    variables: ReadonlyMap<string, string>,
    args: ReadonlyMap<string, string | undefined> = new Map(),
    check: CheckName = "UndefinedVar",
  ) {
    this.#escape = escape;
    this.#warnings = warnings;
    this.#check = check;
    this.variables = new Map(variables);
    this.args = new Map(args);
  }

  /** Expands one word. @throws BerthError at `at`. */
  word(text: string, at: Location): string {
    return this.#expand(text, at).text;
  }

  /** Expands a word that may become several. */
  words(text: string, at: Location): string[] {
    return this.#expand(text, at).words;
  }

  /** Expands the content of a heredoc: quotes are ordinary, a backslash escapes. */
  content(text: string, at: Location): string {
    const { text: result, unset } = expand(text, (name) => this.variables.get(name), at, {
      escape: "\\",
      keepQuotes: true,
    });
    this.#warn(unset, at);
    return result;
  }

  #expand(text: string, at: Location) {
    const expansion = expand(text, (name) => this.variables.get(name), at, { escape: this.#escape });
    this.#warn(expansion.unset, at);
    return expansion;
  }

  #warn(unset: readonly string[], at: Location): void {
    for (const name of unset) {
      if (this.args.has(name)) continue;
      const hint = didYouMean(name, [...this.variables.keys(), ...this.args.keys()]);
      this.#warnings.push({ check: this.#check, message: `the variable ${name} is not set${hint}`, at });
    }
  }
}

/**
 * The scope of the FROMs: the predefined arguments, then the ARGs before the first FROM, each with the given value or
 * its default.
 */
export function globalScope(
  globalArgs: readonly ArgInstruction[],
  given: Readonly<Record<string, string>>,
  predefined: ReadonlyMap<string, string>,
  escape: string,
  warnings: Warning[],
): Scope {
  const scope = new Scope(escape, warnings, predefined, new Map(), "UndefinedArgInFrom");
  for (const instruction of globalArgs) {
    for (const { name, value } of instruction.args) {
      const chosen = Object.hasOwn(given, name)
        ? given[name]
        : value === null
          ? undefined
          : scope.word(value, instruction.at);
      scope.args.set(name, chosen);
      if (chosen !== undefined) scope.variables.set(name, chosen);
    }
  }
  return scope;
}
