import { type ExecFileSyncOptions, execFileSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";

const output = (program: string, args: readonly string[], more: ExecFileSyncOptions = {}): Buffer =>
  execFileSync(program, args, { maxBuffer: 2 ** 30, stdio: ["pipe", "pipe", "ignore"], ...more }) as Buffer;
const lines = (bytes: Buffer): string[] => bytes.toString().split("\n").filter(Boolean);

interface Debian {
  /** A tar of the packages' files and what dpkg knows of them. */
  root: Buffer;
  /** What belongs beside it: path → text. */
  files: Record<string, string>;
}

/** Debian as an image, of what this machine's packages brought: these, and all that they need. apt and dpkg work in it. */
export function debianOf(names: readonly string[]): Debian {
  const packages = withDependencies(names);
  const listed = lines(output("dpkg-query", ["--listfiles", ...packages]));
  const info = `ls -d /var/lib/dpkg/info/* | grep -E '/(${packages.join("|").replaceAll("+", "\\+")})(:|\\.)'`;
  const all = new Set([
    // Links to directories come before what is listed below them.
    ...["/bin", "/sbin", "/lib", "/lib64"].filter((path) => existsSync(path)),
    ...listed.filter((path) => /^\/[^.]/.test(path) && !/^\/usr\/share\/(?:doc|man|locale)\//.test(path)),
    ...lines(output("sh", ["-c", info])),
  ]);
  const how = ["--create", "--no-recursion", "--ignore-failed-read", "--files-from=-"];
  const accounts = Object.fromEntries(
    ["passwd", "group"].map((name) => [name, readFileSync(`/usr/share/base-passwd/${name}.master`, "utf8")]),
  );
  return {
    root: output("tar", how, { input: [...all].join("\n") }),
    files: {
      "etc/passwd": `${accounts["passwd"] ?? ""}_apt:x:42:65534::/nonexistent:/usr/sbin/nologin\n`,
      "etc/group": accounts["group"] ?? "",
      "etc/shadow": "root:*:19000:0:99999:7:::\n",
      "var/lib/dpkg/status": output("dpkg-query", ["--status", ...packages]).toString(),
    },
  };
}

/** What this machine's own apt installs Debian's packages from. */
export interface AptSource {
  uri: string;
  suite: string;
}

/** Debian's source among this machine's, null when it has none or does not reach it. */
export async function reachedSource(): Promise<AptSource | null> {
  const suite = /^VERSION_CODENAME=(\w+)$/m.exec(readFileSync("/etc/os-release", "utf8"))?.[1] ?? "";
  const format = "$(CREATED_BY) $(COMPONENT) $(RELEASE) $(REPO_URI)";
  const targets = lines(output("apt-get", ["indextargets", `--format=${format}`]));
  const uri = targets.find((target) => target.startsWith(`Packages main ${suite} `))?.split(" ")[3];
  if (uri === undefined) return null;
  const signal = AbortSignal.timeout(10_000);
  const release = await fetch(new URL(`dists/${suite}/InRelease`, uri), { method: "HEAD", signal }).catch(() => null);
  return release?.ok === true ? { uri, suite } : null;
}

/** A package of one file, as `dpkg-deb` makes it, whose script runs when it is configured. */
export function packageOf(directory: string, control: Record<string, string>, script: string): Buffer {
  const build = `set -e; umask 022; mkdir -p p/DEBIAN p/usr/share; cat > p/DEBIAN/control; printf %s "$1" > p/DEBIAN/postinst
    chmod 755 p/DEBIAN/postinst; echo hello > p/usr/share/hello; dpkg-deb --root-owner-group --build p p.deb >/dev/null; cat p.deb`;
  const input = Object.entries(control).map(([field, value]) => `${field}: ${value}\n`);
  return output("sh", ["-c", build, "sh", script], { cwd: directory, input: input.join("") });
}

function withDependencies(names: readonly string[]): string[] {
  const needs = new Map<string, string[]>();
  const format = "${Package}\t${Pre-Depends},${Depends}\t${db:Status-Abbrev}\n";
  for (const line of lines(output("dpkg-query", ["--show", `--showformat=${format}`]))) {
    const [name = "", depends = "", state] = line.split("\t");
    if (state?.startsWith("ii") === true)
      needs.set(
        name,
        depends.split(",").map((one) => one.trim()),
      );
  }
  // The set grows while it is walked.
  const all = new Set(names);
  for (const name of all) {
    for (const alternatives of needs.get(name) ?? []) {
      const found = alternatives.split("|").map((one) => /^[^\s(:]+/.exec(one.trim())?.[0] ?? "");
      const installed = found.find((one) => needs.has(one));
      if (installed !== undefined) all.add(installed);
    }
  }
  return [...all].toSorted();
}
