import { posix } from "node:path";
import { BerthError } from "../core/errors.ts";
import { type GitAddress, isGitAddress, parseGitAddress } from "../core/git-source.ts";
import type { CopyInstruction } from "./instruction.ts";
import { dockerfileError, type Location } from "./source.ts";

/** A source of ADD that is fetched: a file, which goes by the last name of the URL's path, or a git repository's tree. */
export type RemoteSource =
  | { kind: "http"; url: string; name: string; unpack: boolean }
  | ({ kind: "git" } & GitAddress);

type AddFlags = Pick<CopyInstruction, "unpack" | "keepGitDir">;

/**
 * What a source of ADD names, if it is elsewhere; null: a path.
 * @throws BerthError at `at`.
 */
export function remoteSource(source: string, flags: AddFlags, at: Location): RemoteSource | null {
  if (isGitAddress(source)) {
    try {
      const address = parseGitAddress(source);
      return { kind: "git", ...address, keepGitDir: address.keepGitDir || flags.keepGitDir };
    } catch (error) {
      if (error instanceof BerthError) throw dockerfileError(at, `${error.message}.`);
      throw error;
    }
  }
  if (!/^https?:\/\//.test(source)) return null;
  if (!URL.canParse(source)) throw dockerfileError(at, "the URL is not valid.");
  const url = new URL(source);
  url.hash = "";
  return { kind: "http", url: url.href, name: fileName(url), unpack: flags.unpack === true };
}

/** The last name of the URL's path, or empty when it has none that could be a file's. */
function fileName(url: URL): string {
  const written = posix.basename(url.pathname);
  let name = written;
  try {
    name = decodeURIComponent(written);
  } catch {
    // Not encoded: it stands for itself.
  }
  return /[/\0]|^\.{0,2}$/.test(name) || Buffer.byteLength(name) > 255 ? "" : name;
}
