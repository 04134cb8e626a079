import { readdirSync, readFileSync, rmdirSync, rmSync, writeFileSync } from "node:fs";
import { setImmediate as nextTurn, setTimeout as sleep } from "node:timers/promises";
import { hasCode } from "./ffi.ts";
import { cgroupVersion } from "./host.ts";

const root = "/sys/fs/cgroup";

/**
 * The control groups of containers, on version 2 (one hierarchy) and version 1 (one per controller). The runtime makes
 * them; everything after that is done here, in process. Paths are from a hierarchy's root, such as
 * `/berth-a1b2c3/prj_…/ctr_…`.
 */
export class Cgroups {
  readonly version: 1 | 2;
  /** Directories of the hierarchies. */
  readonly #hierarchies: readonly string[];

  constructor() {
    this.version = cgroupVersion();
    this.#hierarchies = this.version === 2 ? [root] : versionOneHierarchies();
  }

  /** Whether the kernel killed a process of the group for its memory limit. */
  oomKilled(path: string): boolean {
    const text = this.read(path, "memory", this.version === 2 ? "memory.events" : "memory.oom_control");
    return Number(/^oom_kill (\d+)$/m.exec(text ?? "")?.[1] ?? 0) > 0;
  }

  /** Processes in the group and below it. */
  processes(path: string): number[] {
    const found = new Set<number>();
    for (const hierarchy of this.#hierarchies) collect(`${hierarchy}${path}`, found);
    return [...found];
  }

  /** Stops or continues all processes of the group; returns once they have. Of a group that is gone, there are none. */
  async freeze(path: string, frozen: boolean): Promise<void> {
    const flag = frozen ? "1" : "0";
    const state = frozen ? "FROZEN" : "THAWED";
    const { file, value, seen, holds } =
      this.version === 2
        ? {
            file: `${root}${path}/cgroup.freeze`,
            value: flag,
            seen: "cgroup.events",
            holds: (text: string) => text.includes(`frozen ${flag}`),
          }
        : {
            file: `${root}/freezer${path}/freezer.state`,
            value: state,
            seen: "freezer.state",
            holds: (text: string) => text.trim() === state,
          };
    ignoreMissing(() => {
      writeFileSync(file, value);
    });
    await this.#until(() => {
      const text = this.read(path, "freezer", seen);
      return text === null || holds(text);
    });
  }

  /** Kills all processes of the group and waits for their end. @throws Error when that takes more than seconds. */
  async kill(path: string): Promise<void> {
    for (let attempt = 0; this.processes(path).length > 0; attempt++) {
      if (attempt >= 500) throw new Error(`the processes of cgroup ${path} do not end`);
      this.#kill(path);
      await pause(attempt);
    }
  }

  /**
   * Removes the group from every hierarchy, killing what is still in it; its project's group goes when it was the last.
   * A group that is not there is no error.
   */
  async remove(path: string): Promise<void> {
    const leaves = this.#hierarchies.map((hierarchy) => `${hierarchy}${path}`);
    for (let attempt = 0; ; attempt++) {
      // EBUSY lasts some microseconds beyond the last process's end.
      if (leaves.filter((leaf) => !removeTree(leaf)).length === 0) break;
      if (attempt >= 500) throw new Error(`cgroup ${path} is still in use`);
      this.#kill(path);
      await pause(attempt);
    }
    for (const leaf of leaves) removeIfEmpty(leaf.slice(0, leaf.lastIndexOf("/")));
    // What the runtime writes where it expects the unified hierarchy, and host.ts has put plain files.
    if (this.version === 1) rmSync(`${root}/unified${path}`, { recursive: true, force: true });
  }

  /** Groups of single containers below `parent`, as `<project>/<container>`. */
  list(parent: string): string[] {
    const found = new Set<string>();
    for (const hierarchy of this.#hierarchies) {
      for (const project of directories(`${hierarchy}${parent}`)) {
        const containers = directories(`${hierarchy}${parent}/${project}`);
        for (const container of containers) found.add(`${project}/${container}`);
      }
    }
    return [...found];
  }

  /** Removes the group of the instance itself, when it is empty, with those of projects without containers. */
  removeParent(parent: string): void {
    for (const hierarchy of this.#hierarchies) {
      for (const project of directories(`${hierarchy}${parent}`)) removeIfEmpty(`${hierarchy}${parent}/${project}`);
      removeIfEmpty(`${hierarchy}${parent}`);
    }
  }

  #kill(path: string): void {
    if (this.version === 2) {
      try {
        writeFileSync(`${root}${path}/cgroup.kill`, "1");
        return;
      } catch (error) {
        if (hasCode(error, "ENOENT")) return;
        // Kernels before 5.14 have no cgroup.kill: one by one.
      }
    } else {
      // A frozen process dies only when it is thawed.
      ignoreMissing(() => {
        writeFileSync(`${root}/freezer${path}/freezer.state`, "THAWED");
      });
    }
    for (const pid of this.processes(path)) {
      try {
        process.kill(pid, "SIGKILL");
      } catch (error) {
        if (!hasCode(error, "ESRCH")) throw error;
      }
    }
  }

  /** A file of the group; null: there is none. On version 2 the controller has no say. */
  read(path: string, controller: string, file: string): string | null {
    try {
      return readFileSync(`${root}${this.version === 2 ? "" : `/${controller}`}${path}/${file}`, "utf8");
    } catch (error) {
      if (hasCode(error, "ENOENT", "ENODEV")) return null;
      throw error;
    }
  }

  write(path: string, controller: string, file: string, value: string): void {
    writeFileSync(`${root}${this.version === 2 ? "" : `/${controller}`}${path}/${file}`, value);
  }

  async #until(holds: () => boolean): Promise<void> {
    for (let attempt = 0; attempt < 500; attempt++) {
      if (holds()) return;
      await pause(attempt);
    }
    throw new Error("the cgroup's processes do not stop");
  }
}

/** What is waited for takes microseconds as a rule, and sometimes seconds. */
async function pause(attempt: number): Promise<void> {
  await (attempt < 20 ? nextTurn() : sleep(5));
}

/** Mounted hierarchies of version 1: those that a runtime puts a container into. */
function versionOneHierarchies(): string[] {
  const found = new Set<string>();
  for (const line of readFileSync("/proc/self/mountinfo", "utf8").split("\n")) {
    const [before = "", after = ""] = line.split(" - ");
    const path = before.split(" ")[4] ?? "";
    if (after.startsWith("cgroup ") && path.startsWith(`${root}/`)) found.add(path);
  }
  return [...found];
}

function directories(path: string): string[] {
  try {
    return readdirSync(path, { withFileTypes: true }).flatMap((entry) => (entry.isDirectory() ? [entry.name] : []));
  } catch (error) {
    if (hasCode(error, "ENOENT", "ENODEV")) return [];
    throw error;
  }
}

function collect(path: string, found: Set<number>): void {
  ignoreMissing(() => {
    for (const pid of readFileSync(`${path}/cgroup.procs`, "utf8").split("\n")) if (pid !== "") found.add(Number(pid));
  });
  for (const child of directories(path)) collect(`${path}/${child}`, found);
}

/** Removes a group and those below it; false: some process is still in it. */
function removeTree(path: string): boolean {
  try {
    rmdirSync(path);
    return true;
  } catch (error) {
    if (hasCode(error, "ENOENT")) return true;
    if (!hasCode(error, "EBUSY", "ENOTEMPTY")) throw error;
  }
  const children = directories(path);
  return children.length > 0 && children.every((child) => removeTree(`${path}/${child}`)) && removeTree(path);
}

function removeIfEmpty(path: string): void {
  try {
    rmdirSync(path);
  } catch (error) {
    if (!hasCode(error, "ENOENT", "EBUSY", "ENOTEMPTY")) throw error;
  }
}

function ignoreMissing(effect: () => void): void {
  try {
    effect();
  } catch (error) {
    if (!hasCode(error, "ENOENT", "ENODEV", "ESRCH")) throw error;
  }
}
