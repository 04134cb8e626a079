import { isChmod } from "./chmod.ts";
import type { CopyInstruction } from "./instruction.ts";
import type { CopyOrigin } from "./origin.ts";
import { cleanPath, namesDirectory, resolvePath } from "./paths.ts";
import { type RemoteSource, remoteSource } from "./remote-source.ts";
import type { Scope } from "./scope.ts";
import { dockerfileError, type Location, quoted } from "./source.ts";
import type { CopyStep, StepBody } from "./step.ts";

/** The step of a COPY or ADD: words expanded, paths absolute, remote sources apart from local ones. */
export function planCopy(
  instruction: CopyInstruction,
  origin: CopyOrigin,
  scope: Scope,
  cwd: string,
): StepBody<CopyStep> {
  const { at } = instruction;
  const keyword = instruction.kind.toUpperCase();
  const optional = (text: string | null) => (text === null ? null : scope.word(text, at));
  const written = instruction.sources.map((source) => scope.word(source, at));
  const isRemote = (source: string) => remoteSource(source, instruction, at);
  const remotes = written.flatMap((source) => isRemote(source) ?? []);
  if (remotes.length > 0 && instruction.kind === "copy") {
    throw dockerfileError(at, `COPY takes no URL; ADD does.`);
  }
  const checksum = optional(instruction.checksum);
  if (checksum !== null) checkChecksum(checksum, written.length === 1 ? remotes[0] : undefined, at);
  const chmod = optional(instruction.chmod);
  if (chmod !== null && !isChmod(chmod)) {
    throw dockerfileError(
      at,
      `--chmod must be octal up to 7777 or symbolic such as u=rwX,go=rX, not ${quoted(chmod)}.`,
    );
  }
  const chown = optional(instruction.chown);
  // Nothing is the working directory, as a variable that is not set may leave it.
  const target = scope.word(instruction.destination, at) || "./";
  const sources = written.filter((source) => isRemote(source) === null);
  const inline = instruction.inline.map(({ name, content, expand }) => ({
    name,
    content: expand ? scope.content(content, at) : content,
  }));
  const flags = [
    instruction.parents ? ["--parents"] : [],
    chown === null ? [] : [`--chown=${chown}`],
    chmod === null ? [] : [`--chmod=${chmod}`],
  ].flat();
  const intoDirectory = namesDirectory(target) || written.length + inline.length > 1;
  if (intoDirectory && remotes.some((remote) => remote.kind === "http" && remote.name === "")) {
    throw dockerfileError(at, "the URL's path ends in no file name, so the destination must say one.");
  }
  const names = [...written, ...inline.map(({ name }) => `<<${name}`)];
  return {
    kind: "copy",
    origin,
    // `/./` marks where --parents begins to keep directories; it must outlive the cleaning.
    sources: instruction.parents ? sources.map(cleanKeepingPivot) : sources.map(cleanPath),
    remotes,
    inline,
    destination: resolvePath(cwd, target),
    intoDirectory,
    chown: chown === "" ? null : chown,
    chmod,
    excludes: instruction.excludes.map((pattern) => scope.word(pattern, at)),
    parents: instruction.parents,
    link: instruction.link,
    unpack: instruction.unpack ?? instruction.kind === "add",
    checksum,
    createdBy: [keyword, ...flags, ...names, target].join(" "),
  };
}

function cleanKeepingPivot(source: string): string {
  const pivot = source.indexOf("/./");
  if (pivot < 0) return cleanPath(source);
  const before = cleanPath(source.slice(0, pivot));
  return `${before === "/" ? "" : before}/.${cleanPath(source.slice(pivot + 3))}`;
}

function checkChecksum(checksum: string, remote: RemoteSource | undefined, at: Location): void {
  if (remote === undefined) throw dockerfileError(at, "--checksum needs exactly one source, a URL.");
  const form = remote.kind === "http" ? /^sha256:[0-9a-f]{64}$/ : /^[0-9a-f]{1,64}$/;
  if (form.test(checksum)) return;
  const rule = remote.kind === "http" ? "sha256: and 64 hexadecimal digits" : "a commit id or its beginning";
  throw dockerfileError(at, `--checksum of this source must be ${rule}, not ${quoted(checksum)}.`);
}
