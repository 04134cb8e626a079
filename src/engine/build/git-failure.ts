import { BerthError, type ErrorCode } from "../../core/errors.ts";

/** What git says (LC_ALL=C), and what that means to whoever asked for the build. */
const meanings: readonly (readonly [pattern: RegExp, code: ErrorCode, what: (ref: string | null) => string])[] = [
  [
    /could not read (?:Username|Password)|Authentication failed|returned error: 40[13]\b/,
    "repository_denied",
    () => "does not exist, or asks for credentials",
  ],
  [
    /couldn't find remote ref|not our ref|unadvertised object/,
    "ref_not_found",
    (ref) => (ref === null ? "has no default branch" : `has no branch, tag or commit ${JSON.stringify(ref)}`),
  ],
  [
    /returned error: 30\d\b/,
    "repository_not_found",
    () => "is elsewhere: its server answers with a redirect, so give the URL that it leads to",
  ],
  [
    /repository '[^']*' not found|not valid: is this a git repository|returned error: 4\d\d\b/,
    "repository_not_found",
    () => "does not exist",
  ],
  [/died of signal 25|File too large|Out of memory/, "invalid_context", () => "is too large"],
];

/** Why a server can't be reached, by words of git's and its HTTP client's; what the server sent is in none of these. */
const obstacles: readonly (readonly [pattern: RegExp, why: string])[] = [
  [/returned error: 5\d\d\b/, "its server has an error of its own"],
  [/timed out|too slow/i, "its server takes too long to answer"],
  [/Failed to connect|Couldn't connect/, "nothing takes connections there"],
  [/certificate|handshake|SSL|TLS/, "its TLS or its certificate can't be trusted"],
];

/**
 * The error for a fetch that failed. git's own words, which hold what the server sent, are its cause only; a server that
 * was shown credentials may repeat them, so then they are no cause either.
 */
export function fetchFailure(url: string, ref: string | null, stderr: string, loggedIn: boolean): BerthError {
  const repository = `The git repository ${JSON.stringify(url)}`;
  const cause = new Error(loggedIn ? "git failed" : stderr.trim());
  for (const [pattern, code, what] of meanings) {
    if (!pattern.test(stderr)) continue;
    if (code !== "repository_denied" || !loggedIn)
      return new BerthError(code, `${repository} ${what(ref)}.`, { cause });
    return new BerthError("git_auth_failed", `${repository} does not exist, or refuses the credentials.`, { cause });
  }
  // The rest is about connections, certificates and time-outs.
  const why = obstacles.find(([pattern]) => pattern.test(stderr))?.[1];
  const detail = `${repository} can't be reached${why === undefined ? "" : `: ${why}`}.`;
  return new BerthError("repository_unreachable", detail, { cause });
}
