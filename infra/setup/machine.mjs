import { existsSync, readFileSync } from "node:fs";
import { run, step } from "./report.mjs";

/** The system users: `berth` is the API and owns the blobs, `berth-db` owns the database's files. */
const users = ["berth", "berth-db"];

export const isRoot = process.getuid?.() === 0;

/** Whether packages can be installed here: Debian or a descendant, with apt, as root. */
export function hasApt() {
  return isRoot && ["/usr/bin/apt-get", "/bin/apt-get"].some((path) => existsSync(path));
}

/** The distribution's name, such as `Debian GNU/Linux 12 (bookworm)`. */
export function distribution() {
  const text = existsSync("/etc/os-release") ? readFileSync("/etc/os-release", "utf8") : "";
  return /^PRETTY_NAME="?([^"\n]*)/m.exec(text)?.[1] ?? "an unknown system";
}

/**
 * Why containers can't run here, whatever is installed; null when they can. What counts is what the kernel lets us
 * do, not marker files: a privileged container may do, and a virtual machine can be made of a container's image.
 */
export function obstacle() {
  if (process.platform !== "linux") return "This is not Linux";
  if (!isRoot) return "Berth was not started as root, and only root can make containers";
  const status = readFileSync("/proc/self/status", "utf8");
  const capabilities = BigInt(`0x${/^CapEff:\s*(\w+)/m.exec(status)?.[1] ?? "0"}`);
  const [netAdmin, sysAdmin] = [12n, 21n];
  const whole = (capabilities >> netAdmin) & (capabilities >> sysAdmin) & 1n;
  const filtered = /^Seccomp:\s*2/m.test(status);
  const mapped = !/^\s*0\s+0\s+4294967295\s*$/.test(readFileSync("/proc/self/uid_map", "utf8"));
  if (whole === 0n || filtered || mapped)
    return "This is the inside of a container, which may not make containers itself";
  return null;
}

export function missingUsers() {
  const known = readFileSync("/etc/passwd", "utf8");
  return users.filter((name) => !known.split("\n").some((line) => line.startsWith(`${name}:`)));
}

/** @returns {Promise<string | null>} what went wrong, in a sentence */
export function makeUsers(/** @type {string[]} */ names) {
  const options = ["--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent"];
  return step(`users         making ${names.join(", ")}`, async () => {
    for (const name of names) {
      const failure = await run("useradd", [...options, "--shell", "/usr/sbin/nologin", name]);
      if (failure !== null) return `useradd could not make ${name}: ${failure}`;
    }
    return null;
  });
}
