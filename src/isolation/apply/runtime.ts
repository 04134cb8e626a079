import {
  accessSync,
  closeSync,
  constants,
  existsSync,
  mkdirSync,
  openSync,
  rmSync,
  statSync,
  unlinkSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { setImmediate as nextTurn } from "node:timers/promises";
import { BerthError } from "../../core/errors.ts";
import { hasCode } from "./ffi.ts";
import { attachMount, cloneMount, MOUNT_ATTR_RDONLY, setAttributes } from "./mount-api.ts";
import { run } from "./spawn.ts";

export type RuntimeName = "crun" | "runc";

/** An OCI runtime of the host. */
export interface Runtime {
  name: RuntimeName;
  file: string;
  version: string;
  /** Global arguments: where it keeps its state. */
  args: readonly string[];
  /** Why an operator should update it; null: nothing known. */
  warning: string | null;
}

/** First versions with the fixes of November 2025 (CVE-2025-31133, -52565, -52881: masked paths and /dev/console). */
const safeVersions: Readonly<Record<RuntimeName, readonly number[]>> = { crun: [1, 25, 0], runc: [1, 2, 8] };
const directories = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"];

/**
 * Finds the runtime that containers are made with: the wanted one, else crun, else runc (three times slower to start).
 * @throws BerthError `unavailable` naming what to install.
 */
export async function findRuntime(wanted: RuntimeName | null, stateDir: string): Promise<Runtime> {
  for (const name of wanted === null ? (["crun", "runc"] as const) : [wanted]) {
    const file = findProgram(name);
    if (file === null) continue;
    const output = (await run({ file, args: ["--version"], timeoutMs: 10_000 })).stdout.bytes.toString();
    const version = /version (\d+(?:\.\d+)*)/.exec(output)?.[1] ?? "0";
    const warning = isOlder(version, safeVersions[name])
      ? `${name} ${version} lacks fixes of November 2025; install ${name} ${safeVersions[name].join(".")} or newer`
      : null;
    return { name, file, version, args: [`--root=${stateDir}`], warning };
  }
  throw new BerthError("unavailable", `No OCI runtime was found; install ${wanted ?? "crun"}.`);
}

/**
 * The runtime by way of a read-only mount in this mount namespace. A container that reaches the runtime's file through
 * /proc/self/exe can't write it there (CVE-2019-5736), and crun, which sees that, need not copy itself to memory and
 * execute the copy at each start (3 ms).
 */
export function mountReadOnly(runtime: Runtime, directory: string): Runtime {
  mkdirSync(directory, { recursive: true, mode: 0o711 });
  const file = `${directory}/${runtime.name}`;
  if (!existsSync(file)) writeFileSync(file, "");
  const [mounted, wanted] = [statSync(file), statSync(runtime.file)];
  // Another inode: nothing is mounted yet, or the host's runtime was replaced since.
  if (mounted.ino !== wanted.ino || mounted.dev !== wanted.dev) {
    const mount = cloneMount(runtime.file);
    try {
      setAttributes(mount, MOUNT_ATTR_RDONLY);
      attachMount(mount, file);
    } finally {
      closeSync(mount);
    }
  }
  return { ...runtime, file };
}

/** Absolute path of a program of the host, or null. */
export function findProgram(name: string): string | null {
  return (
    directories
      .map((directory) => `${directory}/${name}`)
      .find((file) => {
        try {
          accessSync(file, constants.X_OK);
          return true;
        } catch {
          return false;
        }
      }) ?? null
  );
}

function isOlder(version: string, least: readonly number[]): boolean {
  const parts = version.split(".").map(Number);
  const index = least.findIndex((part, at) => (parts[at] ?? 0) !== part);
  return index >= 0 && (parts[index] ?? 0) < (least[index] ?? 0);
}

/**
 * Lets the first process of a created container go. crun's waits for a byte in `exec.fifo`; the file's absence tells
 * `crun state` and `exec` that it was started. Doing as `crun start` does saves a program of 3 ms. runc's protocol is
 * its own affair, so it is asked to. The byte comes first: a reader whose writer closed without one spins.
 */
export async function startCreated(runtime: Runtime, stateDir: string, name: string, asked: Asked): Promise<void> {
  if (runtime.name === "runc") {
    const result = await run({ file: runtime.file, args: [...runtime.args, "start", name], timeoutMs: 30_000 });
    if (result.exitCode !== 0) throw runtimeError(result.stderr.bytes.toString(), asked);
    return;
  }
  const path = fifoPath(stateDir, name);
  const fifo = await openFifo(path);
  try {
    writeSync(fifo, "\0");
    unlinkSync(path);
  } finally {
    closeSync(fifo);
  }
}

/** Opens the fifo for writing; its reader may still be about to open it (ENXIO). */
async function openFifo(path: string): Promise<number> {
  for (let attempt = 0; ; attempt++) {
    try {
      return openSync(path, constants.O_WRONLY | constants.O_NONBLOCK);
    } catch (error) {
      if (!hasCode(error, "ENXIO") || attempt > 1000) throw error;
      await nextTurn();
    }
  }
}

/** Whether the container was created but its start was not finished. Both runtimes remove the fifo with the start. */
export function isAwaitingStart(stateDir: string, name: string): boolean {
  return existsSync(fifoPath(stateDir, name));
}

function fifoPath(stateDir: string, name: string): string {
  return `${stateDir}/${name}/exec.fifo`;
}

/** Forgets a container whose processes are gone: what `delete` does, without a program of 4–14 ms. */
export function removeState(stateDir: string, name: string): void {
  rmSync(`${stateDir}/${name}`, { recursive: true, force: true });
}

/** What a runtime was asked to run: a program with its arguments, and the directory it starts in. */
export interface Asked {
  args: readonly string[];
  cwd: string;
}

/** What was asked as it is shown. */
const shown = (text: string) => JSON.stringify(text.length > 200 ? `${text.slice(0, 200)}…` : text);

/** What a runtime's complaint means to the one who asked. The runtime's own words go to the log only. */
export function runtimeError(message: string, { args: [command = ""], cwd }: Asked): BerthError {
  const cause = new Error(message.trim().slice(0, 2000));
  const text = message.toLowerCase();
  // crun: "chdir to `x`: No such file or directory", runc: `exec failed: …: chdir to cwd ("x") set in config.json failed: …`.
  if (/\bchdir\b.*(?:no such file|not a directory)/.test(text)) {
    return new BerthError("file_not_found", `The container has no directory ${shown(cwd)}.`, { cause });
  }
  // crun: "executable file `x` not found in $PATH", "open executable: …"; runc: `exec: "x": stat x: …`.
  if (text.includes("exec")) {
    if (/not found|no such file|not a directory/.test(text)) {
      return new BerthError("command_not_found", `The image has no command ${shown(command)}.`, { cause });
    }
    if (/not permitted|permission denied|format error|is a directory|not executable/.test(text)) {
      return new BerthError("command_not_executable", `The command ${shown(command)} can't be executed.`, { cause });
    }
  }
  if (text.includes("no space left on device") || text.includes("disk quota exceeded")) {
    return new BerthError("disk_full", "The container's disk is full.", { cause });
  }
  return new BerthError("start_failed", "The container could not be started.", { cause });
}
