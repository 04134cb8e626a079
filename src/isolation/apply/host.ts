import { mkdirSync, readFileSync, readlinkSync, statfsSync, statSync, writeFileSync } from "node:fs";
import { mkdir } from "node:fs/promises";
import { BerthError } from "../../core/errors.ts";
import type { Layout } from "../plan/layout.ts";
import { hasCode } from "./ffi.ts";
import { run } from "./spawn.ts";

const NSFS_MAGIC = 0x6e736673;
const CGROUP2_MAGIC = 0x63677270;

/** Runs one of the host's own programs; its last words become the error. */
async function must(file: string, ...args: string[]): Promise<void> {
  const result = await run({ file, args, timeoutMs: 20_000 });
  if (result.exitCode === 0) return;
  throw new Error(`${[file, ...args].join(" ")}: ${result.stderr.bytes.toString().trim() || "failed"}`);
}

/**
 * Prepares the run directory (a tmpfs of its own, mode 0711) and the mount namespace that the worker must run in, and
 * returns the arguments to put before the worker's command line. The namespace is pinned to a file, so that a later
 * worker finds the mounts of containers that an earlier one started. Mounts of the host show up in it, not the reverse.
 * To be called in the host's own mount namespace, as root, before anything is put into the run directory. Idempotent.
 * The working directory is reset to `/` by nsenter: use absolute paths.
 */
export async function ensureMountNamespace(config: { runDir: string }): Promise<string[]> {
  const { runDir } = config;
  const file = `${runDir}/mntns`;
  mkdirSync(runDir, { recursive: true, mode: 0o711 });
  if (!mountPoints().has(runDir)) {
    await must("/usr/bin/mount", "-t", "tmpfs", "-o", "mode=0711,size=256m,nosuid,nodev", "berth", runDir);
    // unshare pins a namespace only on a mount that does not propagate.
    await must("/usr/bin/mount", "--make-private", runDir);
  }
  if (!isPinned(file)) {
    writeFileSync(file, "");
    await must("/usr/bin/unshare", `--mount=${file}`, "--propagation", "slave", "/usr/bin/true");
  }
  return ["/usr/bin/nsenter", `--mount=${file}`, "--"];
}

/** Undoes ensureMountNamespace, once no process is left in the namespace: its mounts go with it. */
export async function removeMountNamespace(config: { runDir: string }): Promise<void> {
  if (isPinned(`${config.runDir}/mntns`)) await must("/usr/bin/umount", `${config.runDir}/mntns`);
  if (mountPoints().has(config.runDir)) await must("/usr/bin/umount", "-l", config.runDir);
}

function isPinned(file: string): boolean {
  try {
    return statfsSync(file).type === NSFS_MAGIC;
  } catch (error) {
    if (hasCode(error, "ENOENT")) return false;
    throw error;
  }
}

/** Whether this process is in the namespace that `layout` pins: the pin itself is seen from outside only. */
function inPinnedNamespace(layout: Layout): boolean {
  const own = Number(/\d+/.exec(readlinkSync("/proc/self/ns/mnt"))?.[0]);
  return [process.ppid, 1].some((outside) => {
    const pin = statSync(`/proc/${String(outside)}/root${layout.mountNamespace}`, { throwIfNoEntry: false });
    return pin?.ino === own;
  });
}

/**
 * Makes the worker's mount namespace and the host's settings fit for starting containers fast. Idempotent.
 * @throws BerthError `unavailable` when the process is in the host's own mount namespace.
 */
export async function prepareHost(layout: Layout): Promise<void> {
  if (!inPinnedNamespace(layout)) {
    throw new BerthError("unavailable", "The worker must run in its own mount namespace (see ensureMountNamespace).");
  }
  for (const path of [layout.links, layout.slots, layout.runtimeRoot])
    await mkdir(path, { recursive: true, mode: 0o711 });
  await mkdir(layout.exits, { recursive: true, mode: 0o700 });
  for (const path of [layout.disks, layout.logs]) await mkdir(path, { recursive: true, mode: 0o711 });
  // Each user namespace has limits of its own (namespaces.ts); the host's, which all of them share, must not come first.
  raise("/proc/sys/fs/inotify/max_user_instances", 2 ** 20);
  raise("/proc/sys/fs/inotify/max_user_watches", 2 ** 26);
  if (cgroupVersion() === 1) {
    // A runtime would keep a second, empty cgroup for each container there: a migration (8 ms) for nothing. It makes the
    // directories all the same; in a small filesystem of this namespace they hurt nobody.
    for (const [path, type] of mountPoints()) {
      if (type !== "cgroup2" || path === `${layout.runDir}/cgroup2`) continue;
      await must("/usr/bin/umount", "-l", path);
      await must("/usr/bin/mount", "-t", "tmpfs", "-o", "mode=0711,size=16m", "berth", path);
    }
  }
  await favorDynamicCgroups(layout);
}

function raise(setting: string, least: number): void {
  if (Number(readFileSync(setting, "utf8")) < least) writeFileSync(setting, String(least));
}

/** 2: the unified hierarchy alone; 1: hierarchies per controller (also with an empty unified one beside them). */
export function cgroupVersion(): 1 | 2 {
  return statfsSync("/sys/fs/cgroup").type === CGROUP2_MAGIC ? 2 : 1;
}

/**
 * Moving a process between cgroups waits for a grace period (8–12 ms), unless the kernel favours dynamic changes; then
 * 0.2 ms, on version 1 as well. It is one setting of the whole system, made by mounting and kept after unmounting; any
 * plain mount of cgroup2 clears it, so it is looked at now and then.
 */
export async function favorDynamicCgroups(layout: Layout): Promise<void> {
  // The host's own mount of cgroup2 shows it; in this namespace there may be none.
  if (/ - cgroup2 .*\bfavordynmods\b/.test(readFileSync("/proc/1/mountinfo", "utf8"))) return;
  if (cgroupVersion() === 2) {
    await must("/usr/bin/mount", "-o", "remount,favordynmods", "/sys/fs/cgroup").catch(() => undefined);
    return;
  }
  const path = `${layout.runDir}/cgroup2`;
  await mkdir(path, { recursive: true });
  try {
    await must("/usr/bin/mount", "-t", "cgroup2", "-o", "favordynmods", "none", path);
  } catch {
    // Kernels before 6.0 don't know the option: starts are slower there, nothing else.
    return;
  }
  await must("/usr/bin/umount", path);
}

/** Mount points of this process's namespace with their filesystem types (proc(5), mountinfo). */
function mountPoints(): Map<string, string> {
  const points = new Map<string, string>();
  for (const line of readFileSync("/proc/self/mountinfo", "utf8").split("\n")) {
    const [before = "", after = ""] = line.split(" - ");
    const path = before.split(" ")[4];
    // Spaces and the like are octal escapes.
    if (path !== undefined) {
      points.set(
        path.replace(/\\(\d{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8))),
        after.split(" ")[0] ?? "",
      );
    }
  }
  return points;
}

/** The worker's hard limit of open files: what it may give to others. */
export function hostOpenFiles(): number {
  const line = /^Max open files\s+\S+\s+(\S+)/m.exec(readFileSync("/proc/self/limits", "utf8"))?.[1];
  return line === undefined || line === "unlimited" ? 1_048_576 : Number(line);
}
