/** One element of a shell pattern: a character, `?`, or `*`. */
type Element = { char: string } | "one" | "many";

/** Bound on comparisons of one match, so that no pattern takes more than some tens of milliseconds. */
const maxComparisons = 20_000_000;

/**
 * A shell pattern, matched with a set of positions as a finite automaton: time is pattern × text, whatever the pattern
 * (a backtracking regular expression can take forever). `*` and `?` are wild, `\` makes the next character literal.
 */
class Pattern {
  readonly #elements: Element[];
  #comparisons = 0;

  constructor(text: string, reversed: boolean) {
    const elements: Element[] = [];
    const chars = Array.from(text);
    for (let i = 0; i < chars.length; i++) {
      const char = chars[i] ?? "";
      if (char === "*") elements.push("many");
      else if (char === "?") elements.push("one");
      else if (char === "\\" && i + 1 < chars.length) elements.push({ char: chars[++i] ?? "" });
      else elements.push({ char });
    }
    this.#elements = reversed ? elements.reverse() : elements;
  }

  /** Number of characters of `text`, from `start`, that the shortest or longest match takes; -1: none matches. */
  match(text: readonly string[], start: number, longest: boolean): number {
    const end = this.#elements.length;
    let states = this.#closure([0]);
    let best = -1;
    for (let i = start; ; i++) {
      if (states.has(end)) {
        best = i - start;
        if (!longest) return best;
      }
      if (i === text.length || states.size === 0) return best;
      this.#comparisons += states.size + 1;
      if (this.#comparisons > maxComparisons) throw new RangeError("matching the pattern takes too long.");
      const next: number[] = [];
      for (const state of states) {
        const element = this.#elements[state];
        if (element === "many") next.push(state);
        else if (element === "one" || (element !== undefined && element.char === text[i])) next.push(state + 1);
      }
      states = this.#closure(next);
    }
  }

  /** The states with those that `*` reaches by matching nothing. */
  #closure(states: readonly number[]): Set<number> {
    const all = new Set<number>();
    for (const state of states) {
      let at = state;
      all.add(at);
      while (this.#elements[at] === "many") all.add(++at);
    }
    return all;
  }
}

/**
 * Length in UTF-16 units of the shortest or longest start (with `fromEnd`: end) of `text` that the pattern matches;
 * -1 when none does. @throws RangeError when it would take too long.
 */
export function matchPrefix(pattern: string, text: string, how: { longest: boolean; fromEnd: boolean }): number {
  const chars = how.fromEnd ? Array.from(text).reverse() : Array.from(text);
  const count = new Pattern(pattern, how.fromEnd).match(chars, 0, how.longest);
  return count < 0 ? -1 : chars.slice(0, count).join("").length;
}

/**
 * Replaces the first (or every) longest match of the pattern.
 * @throws RangeError when it would take too long or the result would pass `maxLength`.
 */
export function replaceMatches(
  pattern: string,
  text: string,
  replacement: string,
  how: { all: boolean; maxLength: number },
): string {
  const compiled = new Pattern(pattern, false);
  const chars = Array.from(text);
  const parts: string[] = [];
  let length = 0;
  const push = (part: string): void => {
    parts.push(part);
    length += part.length;
    if (length > how.maxLength) throw new RangeError(`the value has more than ${how.maxLength} characters.`);
  };
  let i = 0;
  while (i < chars.length) {
    const count = compiled.match(chars, i, true);
    // An empty match replaces nothing, as in bash.
    if (count <= 0) {
      push(chars[i++] ?? "");
      continue;
    }
    push(replacement);
    i += count;
    if (!how.all) break;
  }
  push(chars.slice(i).join(""));
  return parts.join("");
}
