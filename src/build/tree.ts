/** What copying must know of a file. */
export interface TreeEntry {
  type: "file" | "directory" | "symlink" | "other";
  /** A symlink's target as it is; otherwise empty. */
  target: string;
}

/**
 * A read-only tree of files: a build context, or an image's root. Paths are absolute and clean, `/` is the root.
 * Neither method follows symlinks; the callers below do, so that no link ever leaves the tree.
 */
export interface Tree<E extends TreeEntry> {
  /** The entry at exactly this path; null: there is none. Every parent of `path` is known to be a real directory. */
  get(path: string): Promise<E | null>;
  /** Names in a directory, sorted by bytes. */
  list(path: string): Promise<readonly string[]>;
}

/** As many symlinks as the kernel follows in one path (path_resolution(7)). */
const maxLinks = 40;

export interface Resolved<E> {
  /** Without symlinks, but for the last component when it was not to be followed. */
  path: string;
  /** null: nothing is there; missing directories in between may have to be made. */
  entry: E | null;
  /** The path goes through something that is no directory, or through a loop of symlinks. */
  blocked: boolean;
}

/**
 * Resolves a path within the tree as if the tree were the whole file system: an absolute link starts at its root, `..`
 * stops there (what openat2 does with RESOLVE_IN_ROOT).
 */
export async function resolveIn<E extends TreeEntry>(
  tree: Tree<E>,
  path: string,
  followLast = true,
): Promise<Resolved<E>> {
  const pending = components(path).reverse();
  const done: string[] = [];
  let entry = await tree.get("/");
  let links = 0;
  let missing = false;
  for (let part = pending.pop(); part !== undefined; part = pending.pop()) {
    if (part === "..") {
      done.pop();
      missing = false;
      entry = await tree.get(`/${done.join("/")}`);
      continue;
    }
    if (!missing && entry?.type !== "directory") return { path: `/${done.join("/")}`, entry, blocked: true };
    done.push(part);
    entry = missing ? null : await tree.get(`/${done.join("/")}`);
    missing = entry === null;
    if (entry?.type !== "symlink" || (pending.length === 0 && !followLast)) continue;
    if (++links > maxLinks) return { path: `/${done.join("/")}`, entry, blocked: true };
    done.pop();
    if (entry.target.startsWith("/")) done.length = 0;
    pending.push(...components(entry.target).reverse());
    entry = await tree.get(`/${done.join("/")}`);
  }
  return { path: `/${done.join("/")}`, entry, blocked: false };
}

function components(path: string): string[] {
  return path.split("/").filter((part) => part !== "" && part !== ".");
}
