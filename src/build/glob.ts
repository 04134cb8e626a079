/**
 * Globs of paths as Dockerfiles and .dockerignore use them (Go's filepath.Match with `**`): `*` and `?` stay within one
 * component, `[a-z]` and `[^a-z]` are sets, `\` makes the next character literal, the component `**` is any number of
 * components. Time is pattern × path whatever the pattern: the only state is where the last star stood.
 */

/** Whether the text has a wildcard that is not escaped. */
export function hasWildcard(text: string): boolean {
  return /^(?:[^\\*?[]|\\.)*[*?[]/s.test(text);
}

/** The text that a pattern without wildcards stands for. */
export function unescape(pattern: string): string {
  return pattern.replace(/\\(.)/gs, "$1");
}

/** Whether a component's pattern matches a whole name. A set that does not close matches nothing. */
export function matchName(pattern: string, name: string): boolean {
  let p = 0;
  let n = 0;
  let starPattern = -1;
  let starName = 0;
  while (n < name.length) {
    const step = pattern.charAt(p) === "*" ? 0 : matchOne(pattern, p, name.charAt(n));
    if (pattern.charAt(p) === "*") {
      starPattern = ++p;
      starName = n;
    } else if (step > 0) {
      p += step;
      n++;
    } else if (starPattern >= 0) {
      p = starPattern;
      n = ++starName;
    } else {
      return false;
    }
  }
  while (pattern.charAt(p) === "*") p++;
  return p === pattern.length;
}

/** Length of the pattern's element at `p` when it matches the character, otherwise 0. */
function matchOne(pattern: string, p: number, char: string): number {
  switch (pattern.charAt(p)) {
    case "":
      return 0;
    case "?":
      return 1;
    case "\\":
      return p + 1 < pattern.length && pattern.charAt(p + 1) === char ? 2 : 0;
    case "[":
      return matchSet(pattern, p, char);
    default:
      return pattern.charAt(p) === char ? 1 : 0;
  }
}

function matchSet(pattern: string, p: number, char: string): number {
  let i = p + 1;
  const negated = pattern.charAt(i) === "^";
  if (negated) i++;
  let found = false;
  for (let first = true; ; first = false) {
    if (i >= pattern.length) return 0;
    if (pattern.charAt(i) === "]" && !first) break;
    if (pattern.charAt(i) === "\\") i++;
    const low = pattern.charAt(i++);
    let high = low;
    if (pattern.charAt(i) === "-" && pattern.charAt(i + 1) !== "]") {
      if (pattern.charAt(++i) === "\\") i++;
      high = pattern.charAt(i++);
    }
    if (char >= low && char <= high) found = true;
  }
  return found === negated ? 0 : i + 1 - p;
}

/** Whether a pattern's components match all of a path's. A `**` at the end needs at least one component. */
export function matchPath(pattern: readonly string[], path: readonly string[]): boolean {
  const last = pattern.length - 1;
  let p = 0;
  let n = 0;
  let starPattern = -1;
  let starPath = 0;
  while (n < path.length) {
    const part = pattern[p];
    if (part === "**" && p === last) return true;
    if (part === "**") {
      starPattern = ++p;
      starPath = n;
    } else if (part !== undefined && matchName(part, path[n] ?? "")) {
      p++;
      n++;
    } else if (starPattern >= 0) {
      p = starPattern;
      n = ++starPath;
    } else {
      return false;
    }
  }
  while (p < last && pattern[p] === "**") p++;
  return p === pattern.length;
}
