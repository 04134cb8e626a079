import { matchPrefix, replaceMatches } from "./pattern.ts";
import { dockerfileError, type Location, quoted } from "./source.ts";
import { isSpace } from "./words.ts";

/** What a name stands for; undefined: it is not set. */
export type Variables = (name: string) => string | undefined;

export interface ExpandOptions {
  escape: string;
  /** Quotes are ordinary characters, as in a heredoc. */
  keepQuotes?: boolean;
}

export interface Expansion {
  text: string;
  /** The text's words: split at white space that was neither quoted nor escaped. */
  words: string[];
  /** Names that were asked for and not set, without those that a modifier gave a default. */
  unset: string[];
}

/** Longest string that the kernel passes to a program (MAX_ARG_STRLEN); repeated doubling ends here. */
const maxLength = 131_072;
const maxDepth = 32;

/**
 * Replaces variables in a word as a shell does: `$x ${x} ${x:-w} ${x-w} ${x:+w} ${x+w} ${x:?e} ${x?e} ${x#p} ${x##p}
 * ${x%p} ${x%%p} ${x/p/r} ${x//p/r}`; quotes are taken off and the escape character makes the next one literal.
 * @throws BerthError `invalid_dockerfile` at `at`: a bad substitution, an unclosed quote, a value that grows too long.
 */
export function expand(word: string, variables: Variables, at: Location, options: ExpandOptions): Expansion {
  const scanner = new Scanner(word, variables, at, options);
  const text = scanner.run("", false);
  return { text, words: scanner.words(), unset: [...scanner.unset] };
}

class Scanner {
  readonly unset = new Set<string>();
  readonly #input: string;
  readonly #variables: Variables;
  readonly #location: Location;
  readonly #options: ExpandOptions;
  readonly #words: string[] = [];
  #word: string | null = null;
  #position = 0;
  #depth = 0;

  constructor(input: string, variables: Variables, location: Location, options: ExpandOptions) {
    this.#input = input;
    this.#variables = variables;
    this.#location = location;
    this.#options = options;
  }

  words(): string[] {
    if (this.#word !== null) this.#words.push(this.#word);
    this.#word = null;
    return this.#words;
  }

  /** Reads up to `stop` (or, when it is empty, the end). `pattern`: escapes stay, for the pattern to read. */
  run(stop: string, pattern: boolean): string {
    const { escape, keepQuotes } = this.#options;
    const top = stop === "";
    let result = "";
    const add = (text: string, splits: boolean): void => {
      result += text;
      if (top) this.#collect(text, splits);
      if (result.length > maxLength) throw this.#fail(`the value has more than ${maxLength} characters.`);
    };
    while (this.#position < this.#input.length) {
      const char = this.#next();
      if (!top && char === stop) return result;
      if (char === "$") add(this.#dollar(), true);
      else if (keepQuotes !== true && char === "'") add(this.#singleQuoted(), false);
      else if (keepQuotes !== true && char === '"') add(this.#doubleQuoted(), false);
      else if (char !== escape) add(char, true);
      // An escape character at the very end stands for nothing.
      else if (this.#position < this.#input.length) add((pattern ? char : "") + this.#next(), false);
    }
    if (!top) throw this.#fail(`\`${stop}\` is missing in a \${…} substitution.`);
    return result;
  }

  #collect(text: string, splits: boolean): void {
    if (!splits) {
      this.#word = (this.#word ?? "") + text;
      return;
    }
    for (const char of text) {
      if (!isSpace(char)) this.#word = (this.#word ?? "") + char;
      else if (this.#word !== null) {
        this.#words.push(this.#word);
        this.#word = null;
      }
    }
  }

  #fail(message: string) {
    return dockerfileError(this.#location, `${quoted(this.#input)}: ${message}`);
  }

  #peek(): string {
    return this.#input.charAt(this.#position);
  }

  #next(): string {
    const code = this.#input.codePointAt(this.#position);
    const char = code === undefined ? "" : String.fromCodePoint(code);
    this.#position += char.length;
    return char;
  }

  #singleQuoted(): string {
    const close = this.#input.indexOf("'", this.#position);
    if (close < 0) throw this.#fail("a single quote is not closed.");
    const text = this.#input.slice(this.#position, close);
    this.#position = close + 1;
    return text;
  }

  #doubleQuoted(): string {
    const { escape } = this.#options;
    let result = "";
    while (this.#position < this.#input.length) {
      const char = this.#next();
      if (char === '"') return result;
      if (char === "$") result += this.#dollar();
      else if (char === escape && ['"', "$", escape].includes(this.#peek())) result += this.#next();
      else result += char;
    }
    throw this.#fail("a double quote is not closed.");
  }

  #get(name: string): string | undefined {
    const value = this.#variables(name);
    if (value === undefined) this.unset.add(name);
    return value;
  }

  #name(): string {
    const match = /^(?:\d+|[\p{L}_][\p{L}\d_]*|[@*#?\-$!])/u.exec(
      this.#input.slice(this.#position, this.#position + 256),
    );
    this.#position += match?.[0].length ?? 0;
    return match?.[0] ?? "";
  }

  /** After a `$`. */
  #dollar(): string {
    if (this.#peek() !== "{") {
      const name = this.#name();
      return name === "" ? "$" : (this.#get(name) ?? "");
    }
    if (++this.#depth > maxDepth) throw this.#fail(`\${…} is nested more than ${maxDepth} deep.`);
    this.#next();
    const name = this.#name();
    if (name === "") throw this.#fail("bad substitution: a name must follow `${`.");
    const value = this.#substitution(name);
    this.#depth--;
    return value;
  }

  /** After `${name`. */
  #substitution(name: string): string {
    let operator = this.#next();
    if (operator === "}") return this.#get(name) ?? "";
    const nullIsUnset = operator === ":";
    if (nullIsUnset) operator = this.#next();
    if (operator === "/" && !nullIsUnset) return this.#replace(name);
    if ((operator === "#" || operator === "%") && !nullIsUnset) return this.#trim(name, operator);
    if (!["-", "+", "?"].includes(operator)) {
      throw this.#fail(`bad substitution: \`${nullIsUnset ? ":" : ""}${operator}\` is no modifier.`);
    }
    const word = this.run("}", false);
    const value = this.#variables(name);
    const missing = value === undefined || (nullIsUnset && value === "");
    if (operator === "+") return missing ? "" : word;
    if (!missing) return value;
    if (operator === "-") return word;
    const what = value === undefined ? "is not set" : "is empty";
    throw this.#fail(`${name}: ${word === "" ? `the variable ${what}` : word}`);
  }

  #trim(name: string, operator: "#" | "%"): string {
    const longest = this.#peek() === operator;
    if (longest) this.#next();
    const pattern = this.run("}", true);
    const value = this.#get(name) ?? "";
    const cut = this.#matching(() => matchPrefix(pattern, value, { longest, fromEnd: operator === "%" }));
    if (cut < 0) return value;
    return operator === "#" ? value.slice(cut) : value.slice(0, value.length - cut);
  }

  #replace(name: string): string {
    const all = this.#peek() === "/";
    if (all) this.#next();
    const pattern = this.run("/", true);
    // As in BuildKit, an escape stays in the replacement too.
    const replacement = this.run("}", true);
    const value = this.#get(name) ?? "";
    return this.#matching(() => replaceMatches(pattern, value, replacement, { all, maxLength }));
  }

  #matching<T>(work: () => T): T {
    try {
      return work();
    } catch (error) {
      if (error instanceof RangeError) throw this.#fail(error.message);
      throw error;
    }
  }
}
