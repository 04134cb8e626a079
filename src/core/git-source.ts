import { BerthError } from "./errors.ts";

/** A commit of a git repository, or a directory of one, as the context of a build. */
export interface GitSource {
  kind: "git";
  /** As `parseGitUrl` writes it. */
  url: string;
  /** Branch, tag, full ref name or full commit id; null: the repository's default branch. */
  ref: string | null;
  /** Directory that is the context, without leading and trailing `/`; null: the whole tree. */
  subdirectory: string | null;
  /** What the ref was when it was read or fetched: this commit is built; null: it has not been yet. */
  commit: string | null;
  /** Digest and size of the tar that the commit became in the blob store. */
  digest: string | null;
  sizeBytes: number | null;
}

/** What a git repository's server asks for before it shows the repository: Basic authentication (RFC 7617). */
export interface GitAuth {
  /** Without `:`. */
  username: string;
  /** A password or token. */
  password: string;
}

const invalid = (detail: string) => new BerthError("invalid_request", detail);

/** A full commit id, SHA-1 or SHA-256. */
export const commitPattern = /^(?:[0-9a-f]{40}|[0-9a-f]{64})$/;

/**
 * The URL of a repository in the one way it is written from here on. Only http and https: every other transport of git's
 * runs programs or reads files of the host. No message repeats the URL, for it may hold a secret.
 * @throws BerthError `invalid_request`
 */
export function parseGitUrl(text: string): string {
  if (text.length > 2_048) throw invalid("A repository's URL has at most 2048 characters");
  // The URL parser would drop blanks and control characters, and take `\` for `/`.
  if (!/^[\x21-\x5b\x5d-\x7e]+$/.test(text)) {
    throw invalid("A repository's URL has printable ASCII characters only, without blanks and `\\`");
  }
  if (/^ssh:/i.test(text) || /^[\w.-]+@[^/]+:/.test(text)) {
    throw invalid("Repositories by ssh are not supported: give the repository's https:// URL");
  }
  if (!/^https?:\/\/[^/]/i.test(text) || !URL.canParse(text)) {
    throw invalid("Must be the http:// or https:// URL of a repository");
  }
  const url = new URL(text);
  if (url.username !== "" || url.password !== "" || /^https?:\/\/[^/?#]*@/i.test(text)) {
    throw invalid("A repository's URL must not hold credentials");
  }
  if (url.search !== "" || url.hash !== "" || /[?#]/.test(text)) {
    throw invalid("A repository's URL has no query and no fragment: give `ref` and `subdirectory` instead");
  }
  // A name ending in a dot would be looked up under another name than the one whose address was checked.
  if (!/^(?:[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])$/.test(url.hostname) || url.port === "0") {
    throw invalid("The URL's host must be a host name or an address");
  }
  return url.href;
}

/**
 * A branch, tag, full ref name (`refs/…`), `HEAD` or full commit id, by git's rules for ref names (git-check-ref-format),
 * so that nothing in it is an option, a pattern, a refspec or an expression of revisions.
 * @throws BerthError `invalid_request`
 */
export function parseGitRef(text: string): string {
  if (text.length === 0 || text.length > 255) throw invalid("A ref has 1 to 255 characters");
  if (text.startsWith("-") || text.startsWith("+")) throw invalid("A ref must not begin with `-` or `+`");
  const characters = !/[\p{Cc}\p{Cf}\p{Zs}\p{Zl}\p{Zp}~^:?*[\\]/u.test(text) && text.isWellFormed();
  const parts = text.split("/").every((part) => part !== "" && !part.startsWith(".") && !part.endsWith(".lock"));
  if (!characters || !parts || text === "@" || /\.\.|@\{|\.$/.test(text)) {
    throw invalid("Must be the name of a branch or tag, or a full commit id");
  }
  return text;
}

/**
 * A directory within the repository, without `.` and empty parts; null: its root.
 * @throws BerthError `invalid_request`
 */
export function parseSubdirectory(text: string): string | null {
  if (text.length > 4_096) throw invalid("A subdirectory has at most 4096 characters");
  if (/\p{Cc}/u.test(text) || !text.isWellFormed()) throw invalid("A subdirectory has no control characters");
  if (text.startsWith("/")) throw invalid("Must be a path within the repository, without a leading `/`");
  const parts = text.split("/").filter((part) => part !== "" && part !== ".");
  if (parts.includes("..")) throw invalid("Must be a path within the repository, without `..`");
  return parts.length === 0 ? null : parts.join("/");
}

/** A repository and what of it is meant, in one text as builders write it. */
export interface GitAddress {
  url: string;
  ref: string | null;
  subdirectory: string | null;
  /** Where the tree goes, its `.git` goes too. */
  keepGitDir: boolean;
}

/** Whether a URL is a repository's: its path ends in `.git`, or only git speaks its protocol. */
export function isGitAddress(text: string): boolean {
  return /^(?:git@|ssh:\/\/|git:\/\/)|^https?:\/\/[^?#]*\.git(?:[?#]|$)/.test(text);
}

/**
 * `https://host/repo.git#ref:directory`, or the same as `?ref=…&subdir=…` (also `branch`, `tag`, `commit` and
 * `keep-git-dir`).
 * @throws BerthError `invalid_request`
 */
export function parseGitAddress(text: string): GitAddress {
  const [, address = "", query = "", fragment = ""] = /^([^?#]*)(?:\?([^#]*))?(?:#(.*))?$/s.exec(text) ?? [];
  const colon = fragment.indexOf(":");
  let ref = colon < 0 ? fragment : fragment.slice(0, colon);
  let keepGitDir = false;
  let subdirectory = colon < 0 ? "" : fragment.slice(colon + 1);
  for (const [name, value] of new URLSearchParams(query)) {
    if (name === "subdir") subdirectory = value;
    else if (name === "branch") ref = `refs/heads/${value}`;
    else if (name === "tag") ref = `refs/tags/${value}`;
    else if (name === "ref" || name === "commit") ref = value;
    else if (name === "keep-git-dir") keepGitDir = /^(?:|1|true)$/.test(value);
    else throw invalid("Of a repository's query ref, branch, tag, commit, subdir and keep-git-dir are known");
  }
  return {
    url: parseGitUrl(address),
    ref: ref === "" ? null : parseGitRef(ref),
    subdirectory: parseSubdirectory(subdirectory.replace(/^\/+/, "")),
    keepGitDir,
  };
}
