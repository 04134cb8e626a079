import { BerthError } from "./errors.ts";
import { type GitAddress, isGitAddress, parseGitAddress } from "./git-source.ts";
import { parseReference } from "./reference.ts";

/** Files that a build may copy from besides its context: a repository's tree, or an archive's content. */
export type ContextFiles = ({ kind: "git" } & GitAddress) | { kind: "tar"; url: string };

/** What a name in FROM, `--from` and `from=` means when the build says so: an image, or files. */
export type NamedContext = { kind: "image"; reference: string } | ContextFiles;

/**
 * A named context as BuildKit's clients write it: `docker-image://debian:12`, `https://host/repo.git#ref:directory`, or
 * the URL of a tar, plain or compressed.
 * @throws BerthError `invalid_request`, `invalid_reference`
 */
export function parseNamedContext(text: string): NamedContext {
  const image = /^docker-image:\/\/(.*)$/s.exec(text)?.[1];
  if (image !== undefined) {
    parseReference(image);
    return { kind: "image", reference: image };
  }
  if (isGitAddress(text)) return { kind: "git", ...parseGitAddress(text) };
  if (!/^https?:/.test(text)) {
    throw new BerthError("invalid_request", "Must be docker-image://IMAGE, or the URL of a git repository or of a tar");
  }
  return { kind: "tar", url: parseTarUrl(text) };
}

/**
 * The http or https URL of a tar. No message repeats it, for it may hold a secret.
 * @throws BerthError `invalid_request`
 */
export function parseTarUrl(text: string): string {
  if (text.length > 2_048 || !/^https?:\/\/[\x21-\x7e]+$/.test(text) || !URL.canParse(text)) {
    throw new BerthError("invalid_request", "Must be an http:// or https:// URL");
  }
  const { username, password } = new URL(text);
  if (username !== "" || password !== "") throw new BerthError("invalid_request", "A URL must not hold credentials");
  return text;
}
