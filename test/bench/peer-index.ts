// What an archive of Debian says it has: pure. Whether its words are Debian's is for whoever has read them (peer-fetch.ts).

/** The name of a suite, such as `trixie` or `sid`; null: no such name. */
export function parseSuite(text: string): string | null {
  return /^[a-z]+(?:-[a-z]+)*$/.test(text) ? text : null;
}

/** A file of the archive, and what its bytes must be. */
export interface ArchiveFile {
  /** From the archive's root, or from the suite's directory when it is an index. */
  path: string;
  /** Hexadecimal. */
  sha256: string;
}

/** A suite's Release file. */
export interface Release {
  /** When it was made, as it says. */
  date: string;
  /** Milliseconds since 1970 after which a mirror ought to have a newer one; null: it doesn't say. */
  validUntil: number | null;
  indexes: ArchiveFile[];
}

/** A package as an index has it. */
export interface Package extends ArchiveFile {
  name: string;
  version: string;
}

/** The fields of a paragraph; lines that continue one are part of it. */
function fields(paragraph: string): Map<string, string> {
  const unfolded = paragraph.replaceAll(/\n[ \t]/g, "\0");
  const lines = unfolded.split("\n").map((line) => /^([^:\s]+):[ \t]*(.*)$/s.exec(line));
  return new Map(lines.flatMap((match) => (match === null ? [] : [[match[1] ?? "", match[2] ?? ""]])));
}

/**
 * Reads the signed text of an InRelease file.
 * @throws when it is another suite's: a mirror could pass off an older one under this name
 */
export function parseRelease(text: string, suite: string): Release {
  const of = fields(text);
  if (of.get("Codename") !== suite && of.get("Suite") !== suite)
    throw new Error(`the archive answers for ${suite} with ${of.get("Codename") ?? "no codename"}`);
  const until = of.get("Valid-Until");
  return {
    date: of.get("Date") ?? "",
    validUntil: until === undefined ? null : Date.parse(until),
    indexes: (of.get("SHA256") ?? "").split("\0").flatMap((line) => {
      const match = /^([0-9a-f]{64})\s+\d+\s+(\S+)$/.exec(line.trim());
      return match === null ? [] : [{ sha256: match[1] ?? "", path: match[2] ?? "" }];
    }),
  };
}

/**
 * The gzipped index of packages of an architecture (of the section `main`).
 * @throws when the release has none
 */
export function packageIndex({ indexes }: Release, architecture: string): ArchiveFile {
  const path = `main/binary-${architecture}/Packages.gz`;
  const found = indexes.find((each) => each.path === path);
  if (found === undefined) throw new Error(`the suite has no ${path}`);
  return found;
}

/** What a Docker Engine is made of, with the C library that its programs ask for, which may be newer than the machine's. */
const parts = {
  needed: ["docker.io", "containerd", "runc", "libc6", "libseccomp2"],
  // Older suites have the client in docker.io, and no buildx.
  ifThere: ["docker-cli", "docker-buildx"],
};

/**
 * The packages to unpack for a Docker Engine, out of an index's text.
 * @throws when a needed one is missing, when one is there more than once, or when its file's name or digest is none
 */
export function choosePackages(index: string): Package[] {
  const wanted = new Map([...parts.needed, ...parts.ifThere].map((name) => [name, [] as Package[]]));
  for (const paragraph of index.split("\n\n")) {
    const name = /^Package: (\S+)$/m.exec(paragraph.slice(0, 200))?.[1] ?? "";
    wanted.get(name)?.push(parsePackage(name, paragraph));
  }
  return [...wanted].flatMap(([name, found]) => {
    if (found.length > 1) throw new Error(`the suite has ${name} ${found.length} times`);
    if (found.length === 0 && parts.needed.includes(name)) throw new Error(`the suite has no ${name}`);
    return found;
  });
}

function parsePackage(name: string, paragraph: string): Package {
  const of = fields(paragraph);
  const path = of.get("Filename") ?? "";
  const sha256 = of.get("SHA256") ?? "";
  if (!/^pool(?:\/[\w+~][\w+~.-]*)+\.deb$/.test(path)) throw new Error(`${name} has no file`);
  if (!/^[0-9a-f]{64}$/.test(sha256)) throw new Error(`${name} has no SHA-256 digest`);
  return { name, version: of.get("Version") ?? "", path, sha256 };
}
