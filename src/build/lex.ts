import { type CheckPolicy, parseCheckPolicy, type SkippedChecks, skippedByComment } from "./check-policy.ts";
import { type Heredoc, heredocOpenings } from "./heredoc.ts";
import { Passage } from "./passage.ts";
import { dockerfileError, type Location, quoted, type Source } from "./source.ts";
import { isSpace } from "./words.ts";

/** Limits that keep hostile text cheap. A line may be as long as BuildKit's scanner takes. */
export const maxDockerfileLength = 4 * 1024 * 1024;
const maxLineLength = 65_535;
const maxInstructions = 10_000;

/** Parser directives at the top of the file. `syntax` is noted only: a foreign frontend is never run. */
export interface Directives {
  syntax?: string;
  escape?: string;
  check?: CheckPolicy;
}

/** One instruction: its keyword, its arguments as one line, and the heredocs that follow it. */
export interface LexedInstruction {
  /** Upper case. */
  keyword: string;
  /** As it was written. */
  written: string;
  at: Location;
  args: Passage;
  heredocs: Heredoc[];
  /** An empty line stood between continued lines. */
  emptyContinuation: boolean;
}

export interface Lexed {
  source: Source;
  directives: Directives;
  /** `\`, or a backquote by directive. */
  escape: string;
  instructions: LexedInstruction[];
  /** Checks that comments directly above an instruction have skipped, by each line of it. */
  skips: ReadonlyMap<number, SkippedChecks>;
}

/**
 * Cuts a Dockerfile into instructions: directives, comments, continuations and heredocs are resolved, the keyword is
 * split off, and nothing is interpreted yet.
 * @throws BerthError `invalid_dockerfile`.
 */
export function lex(text: string, name = "Dockerfile"): Lexed {
  const source: Source = { name, lines: splitLines(text, name) };
  const { directives, escape, end } = readDirectives(source);
  const reader = new LineReader(source, escape, end);
  const skips = new Map<number, SkippedChecks>();
  const instructions: LexedInstruction[] = [];
  for (let next = reader.next(); next !== null; next = reader.next()) {
    if (instructions.length === maxInstructions) {
      throw dockerfileError(next.at, `a Dockerfile may have up to ${maxInstructions} instructions.`);
    }
    instructions.push(next);
    if (reader.skip === null) continue;
    for (let { line } = next.at; line <= reader.line; line++) skips.set(line, reader.skip);
  }
  return { source, directives, escape, instructions, skips };
}

function splitLines(text: string, name: string): string[] {
  const lines: string[] = [];
  const body = text.startsWith("\uFEFF") ? text.slice(1) : text;
  for (let start = 0; start < body.length; ) {
    let end = body.indexOf("\n", start);
    if (end < 0) end = body.length;
    const line = body.slice(start, body.charAt(end - 1) === "\r" ? end - 1 : end);
    lines.push(line.length > maxLineLength ? line.slice(0, 200) : line);
    const at = { source: { name, lines }, line: lines.length, column: 1 };
    if (line.length > maxLineLength) {
      throw dockerfileError(at, `the line has ${line.length} characters; up to ${maxLineLength} are allowed.`);
    }
    if (end > maxDockerfileLength) {
      throw dockerfileError(at, `a Dockerfile may have up to ${maxDockerfileLength} characters.`);
    }
    const nul = line.indexOf("\0");
    if (nul >= 0) throw dockerfileError({ ...at, column: nul + 1 }, "a NUL character is not allowed.");
    start = end + 1;
  }
  return lines;
}

/** `end` is how many lines they are. */
function readDirectives(source: Source): { directives: Directives; escape: string; end: number } {
  const directives: Directives = {};
  let escape = "\\";
  let end = 0;
  for (const [index, line] of source.lines.entries()) {
    const match = /^#\s*([a-zA-Z][a-zA-Z0-9]*)\s*=\s*(\S.*)$/.exec(line.trimStart());
    if (match === null) break;
    const key = match[1]?.toLowerCase();
    const value = match[2]?.trimEnd() ?? "";
    // What is no directive is a comment, and behind a comment no directive is looked for.
    if (key !== "syntax" && key !== "escape" && key !== "check") break;
    const at = { source, line: index + 1, column: 1 };
    if (directives[key] !== undefined) throw dockerfileError(at, `the directive ${key} may stand once only.`);
    if (key === "check") directives.check = parseCheckPolicy(value, at);
    else directives[key] = value;
    end = index + 1;
    if (key !== "escape") continue;
    if (value !== "\\" && value !== "`") {
      throw dockerfileError(at, `the escape character must be \\ or \`, not ${quoted(value)}.`);
    }
    escape = value;
  }
  return { directives, escape, end };
}

/** Where the line's continuation character stands, or -1. One that is itself escaped (`\\`) does not continue. */
function continuationAt(line: string, escape: string): number {
  let end = line.length;
  while (end > 0 && (line.charAt(end - 1) === " " || line.charAt(end - 1) === "\t")) end--;
  return line.charAt(end - 1) === escape && line.charAt(end - 2) !== escape ? end - 1 : -1;
}

class LineReader {
  readonly #source: Source;
  readonly #escape: string;
  #index: number;
  /** What the comments above the last instruction have skipped in it. */
  skip: SkippedChecks | null = null;

  /** Reads on behind so many lines. */
  constructor(source: Source, escape: string, start: number) {
    this.#source = source;
    this.#escape = escape;
    this.#index = start;
  }

  /** The last line that was read, counted from 1. */
  get line(): number {
    return this.#index;
  }

  #take(): string | undefined {
    return this.#source.lines[this.#index++];
  }

  next(): LexedInstruction | null {
    this.skip = null;
    for (;;) {
      const first = this.#take();
      if (first === undefined) return null;
      const trimmed = first.trimStart();
      if (trimmed === "") this.skip = null;
      if (trimmed.startsWith("#")) this.skip ??= skippedByComment(trimmed);
      if (trimmed === "" || trimmed.startsWith("#")) continue;
      const { passage, emptyContinuation } = this.#join(first);
      const whole = passage.trim();
      // A line of nothing but a continuation character, before the end of the file.
      if (whole.text === "") continue;
      let end = 0;
      while (end < whole.text.length && !isSpace(whole.text.charAt(end))) end++;
      const written = whole.text.slice(0, end);
      const keyword = written.toUpperCase();
      const args = whole.slice(end).trim();
      const heredocs = takesHeredocs(keyword, args.text) ? this.#heredocs(args) : [];
      return { keyword, written, at: whole.at(), args, heredocs, emptyContinuation };
    }
  }

  /** The logical line that begins with `first`; comments and empty lines between continued lines don't end it. */
  #join(first: string): { passage: Passage; emptyContinuation: boolean } {
    const parts: string[] = [];
    const segments: { offset: number; line: number; column: number }[] = [];
    let offset = 0;
    let emptyContinuation = false;
    const add = (line: string): boolean => {
      const cut = continuationAt(line, this.#escape);
      segments.push({ offset, line: this.#index, column: 1 });
      const part = cut < 0 ? line : line.slice(0, cut);
      parts.push(part);
      offset += part.length;
      return cut >= 0;
    };
    let continued = add(first);
    while (continued) {
      const line = this.#take();
      if (line === undefined) break;
      const trimmed = line.trimStart();
      if (trimmed.startsWith("#")) continue;
      if (trimmed === "") emptyContinuation = true;
      else continued = add(line);
    }
    return { passage: new Passage(parts.join(""), this.#source, segments), emptyContinuation };
  }

  #heredocs(args: Passage): Heredoc[] {
    return heredocOpenings(args.text, this.#escape).map(({ name, expand, chomp, start }) => {
      const content: string[] = [];
      for (;;) {
        const line = this.#take();
        if (line === undefined) {
          throw dockerfileError(args.at(start), `the heredoc is not closed: no line is ${quoted(name)} alone.`);
        }
        if ((chomp ? line.replace(/^\t+/, "") : line) === name) break;
        content.push(`${line}\n`);
      }
      return { name, expand, chomp, content: content.join("") };
    });
  }
}

function takesHeredocs(keyword: string, args: string): boolean {
  if (!args.includes("<<")) return false;
  return /^(?:RUN|COPY|ADD)$/.test(keyword) || (keyword === "ONBUILD" && /^(?:RUN|COPY|ADD)\s/i.test(args));
}
