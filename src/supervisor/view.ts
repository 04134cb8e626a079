import { spawnSync } from "node:child_process";
import { mkdirSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { closedParent } from "./directories.ts";

/** How an unprivileged child sees the clone. */
export interface View {
  /** The clone's directory, as the child names it. */
  root: string;
  /** argv before a program, as root, that shows it the clone there. */
  enter: readonly string[];
}

/**
 * A clone that any user can reach is used where it is. One below a closed directory, such as /root, is bind-mounted
 * read-only into a mount namespace of its own, kept in `<runDir>/view/namespace`, which a child enters before it gives
 * its privileges up: no other process sees it there.
 * @throws Error, a sentence, when the clone's files themselves are closed to other users
 */
export function openView(clone: string, runDir: string): View {
  if ((statSync(join(clone, "package.json")).mode & 0o004) === 0) {
    throw new Error(`other users can't read the files of ${clone}, and the API runs as one: chmod -R go+rX ${clone}`);
  }
  if (closedParent(clone) === null) return { root: clone, enter: [] };
  closeView(runDir);
  const { base, namespace, root } = pathsOf(runDir);
  mkdirSync(root, { recursive: true, mode: 0o711 });
  writeFileSync(namespace, "");
  // A namespace can only be kept on a mount that passes nothing on to other namespaces.
  run("/usr/bin/mount", "--bind", base, base);
  run("/usr/bin/mount", "--make-private", base);
  const bind = ["/usr/bin/mount", "-o", "bind,ro", clone, root];
  run("/usr/bin/unshare", `--mount=${namespace}`, "--propagation=private", ...bind);
  return { root, enter: ["/usr/bin/nsenter", `--mount=${namespace}`] };
}

/** Removes the namespace for those who would enter it; it ends with the last of those inside. */
export function closeView(runDir: string): void {
  const { base, namespace } = pathsOf(runDir);
  for (const path of [namespace, base]) spawnSync("/usr/bin/umount", ["--lazy", path], { stdio: "ignore" });
}

function pathsOf(runDir: string) {
  const base = join(runDir, "view");
  return { base, namespace: join(base, "namespace"), root: join(base, "clone") };
}

function run(program: string, ...args: string[]): void {
  const { status, stderr } = spawnSync(program, args, { encoding: "utf8" });
  if (status !== 0) throw new Error(`${program} ${args.join(" ")}: ${stderr.trim()}`);
}
