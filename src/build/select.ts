import { BerthError } from "../core/errors.ts";
import { hasWildcard, matchName, unescape } from "./glob.ts";
import { IgnoreRules } from "./ignore.ts";
import { type Resolved, resolveIn, type Tree, type TreeEntry } from "./tree.ts";

/** One file, directory or link to copy. */
export interface CopyItem<E extends TreeEntry> {
  entry: E;
  /** In the source tree, without symlinks. */
  from: string;
  /** Below the destination: `/` is the destination itself. */
  to: string;
  /** A directory that is there already keeps its attributes; the destination itself (`/`) always does. */
  merge: boolean;
}

export interface Selection {
  sources: readonly string[];
  excludes: readonly string[];
  parents: boolean;
  /** The destination is, or must become, a directory. */
  intoDirectory: boolean;
}

/**
 * Chooses what a COPY copies and where to, with Docker's rules: a directory stands for its content; a file goes into a
 * directory under its own name, otherwise it takes the destination's name; a source that is a symlink is followed within
 * the tree, links below it are copied as links; a pattern that matches nothing is nothing, a path that does not exist is
 * an error, and so is a link to nothing that a pattern matches.
 * @throws BerthError `invalid_context`.
 */
export async function* select<E extends TreeEntry>(tree: Tree<E>, selection: Selection): AsyncGenerator<CopyItem<E>> {
  const excludes = new IgnoreRules(selection.excludes);
  const matches: Match<E>[] = [];
  for (const source of selection.sources) matches.push(...(await expandSource(tree, source, selection.parents)));
  const first = matches[0];
  if (first !== undefined && matches.length > 1 && !selection.intoDirectory) {
    throw new BerthError(
      "invalid_context",
      `${matches.length} sources match, so the destination must be a directory and end with "/".`,
    );
  }
  for (const match of matches) yield* walk(tree, match, selection, excludes);
}

interface Match<E> {
  /** As it was asked for: names the copy. */
  name: string;
  found: Resolved<E> & { entry: E };
  /** Directories of `--parents`, as source path and path below the destination. */
  parents: { from: string; to: string }[];
}

async function expandSource<E extends TreeEntry>(tree: Tree<E>, source: string, parents: boolean): Promise<Match<E>[]> {
  const pivot = parents ? Math.max(0, source.indexOf("/./")) : 0;
  const pattern = parents ? source.replace("/./", "/") : source;
  const parts = pattern.split("/").filter((part) => part !== "");
  const wild = parts.findIndex(hasWildcard);
  const paths =
    wild < 0
      ? [`/${parts.map(unescape).join("/")}`]
      : await glob(tree, `/${parts.slice(0, wild).map(unescape).join("/")}`, parts.slice(wild));
  const matches: Match<E>[] = [];
  for (const path of paths) {
    const found = await resolveIn(tree, path);
    const { entry, blocked } = found;
    if (entry !== null && !blocked) {
      matches.push({ name: path, found: { ...found, entry }, parents: parents ? parentsOf(path, pivot) : [] });
    } else {
      const what = wild < 0 ? "is not there to be copied" : "is a link to what is not there";
      throw new BerthError("invalid_context", `${JSON.stringify(path)} ${what}.`);
    }
  }
  return matches;
}

/** The directories between the pivot and the path, outermost first. */
function parentsOf(path: string, pivot: number): { from: string; to: string }[] {
  const found: { from: string; to: string }[] = [];
  for (let end = path.indexOf("/", pivot + 1); end > 0; end = path.indexOf("/", end + 1)) {
    found.push({ from: path.slice(0, end), to: path.slice(pivot, end) });
  }
  return found;
}

/** Paths below `directory` that match the components; links to directories are not entered, as in BuildKit. */
async function glob<E extends TreeEntry>(tree: Tree<E>, directory: string, pattern: string[]): Promise<string[]> {
  const start = await resolveIn(tree, directory);
  if (start.entry?.type !== "directory" || start.blocked) return [];
  const found = new Set<string>();
  const seen = new Set<string>();
  const visit = async (path: string, index: number): Promise<void> => {
    const part = pattern[index];
    if (part === undefined) {
      found.add(path);
      return;
    }
    // Several `**` reach one directory in many ways.
    const state = `${index}:${path}`;
    if (seen.has(state)) return;
    seen.add(state);
    if (part === "**" && index + 1 < pattern.length) await visit(path, index + 1);
    if ((await tree.get(path))?.type !== "directory") return;
    for (const name of await tree.list(path)) {
      const child = path === "/" ? `/${name}` : `${path}/${name}`;
      if (part === "**") {
        if (index + 1 === pattern.length) found.add(child);
        await visit(child, index);
      } else if (matchName(part, name)) {
        await visit(child, index + 1);
      }
    }
  };
  await visit(start.path, 0);
  return [...found].sort();
}

async function* walk<E extends TreeEntry>(
  tree: Tree<E>,
  match: Match<E>,
  selection: Selection,
  excludes: IgnoreRules,
): AsyncGenerator<CopyItem<E>> {
  for (const { from, to } of match.parents) {
    const { entry, path } = await resolveIn(tree, from);
    if (entry !== null) yield { entry, from: path, to, merge: true };
  }
  const { entry, path } = match.found;
  const below = match.parents.at(-1)?.to ?? "";
  const base = `/${match.name.slice(match.name.lastIndexOf("/") + 1)}`;
  if (entry.type === "directory") {
    const to = selection.parents ? below + base : "/";
    yield { entry, from: path, to, merge: true };
    yield* walkDirectory(tree, path, to, [], excludes);
  } else if (!excludes.ignores([base.slice(1)])) {
    yield { entry, from: path, to: selection.intoDirectory || selection.parents ? below + base : "/", merge: false };
  }
}

async function* walkDirectory<E extends TreeEntry>(
  tree: Tree<E>,
  from: string,
  to: string,
  relative: readonly string[],
  excludes: IgnoreRules,
): AsyncGenerator<CopyItem<E>> {
  for (const name of await tree.list(from)) {
    const path = from === "/" ? `/${name}` : `${from}/${name}`;
    const target = to === "/" ? `/${name}` : `${to}/${name}`;
    const below = [...relative, name];
    const entry = await tree.get(path);
    if (entry === null) continue;
    const left = !excludes.empty && excludes.ignores(below);
    if (!left) yield { entry, from: path, to: target, merge: false };
    // A rule with `!` may keep something in a directory that is left out; its parents are then implied.
    if (entry.type === "directory") yield* walkDirectory(tree, path, target, below, excludes);
  }
}
