import { spawn } from "node:child_process";
import { once } from "node:events";
import { type Duplex, PassThrough, type Readable, type Writable } from "node:stream";
import { text } from "node:stream/consumers";

/** What a tenant's repository may make git use: bytes of one file, of address space; seconds of CPU of one process. */
const limits = { fileBytes: 2 * 2 ** 30, addressBytes: 4 * 2 ** 30, cpuSeconds: 600 };

/**
 * Nothing of the host's configuration and of the tenant's: no hook but ours, no background process that outlives the
 * request, one thread, memory within bounds. What is pushed is checked, kept as the pack that came, and no larger than
 * the caller says.
 */
function settings(more: Readonly<Record<string, string>>): Record<string, string> {
  const all = {
    "core.hooksPath": "/dev/null",
    "credential.helper": "",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "receive.autogc": "false",
    "receive.fsckObjects": "true",
    "receive.unpackLimit": "1",
    "receive.advertisePushOptions": "false",
    "receive.denyDeleteCurrent": "ignore",
    "receive.shallowUpdate": "false",
    "pack.threads": "1",
    "pack.windowMemory": "64m",
    "core.packedGitWindowSize": "64m",
    "core.packedGitLimit": "512m",
    "core.bigFileThreshold": "16m",
    // Modes as a checkout has them.
    "tar.umask": "0022",
    ...more,
  };
  const entries = Object.entries(all);
  return Object.fromEntries([
    ["GIT_CONFIG_COUNT", String(entries.length)],
    ...entries.flatMap(([key, value], index) => [
      [`GIT_CONFIG_KEY_${String(index)}`, key],
      [`GIT_CONFIG_VALUE_${String(index)}`, value],
    ]),
  ]) as Record<string, string>;
}

/** A run of git, the leader of a process group. */
export interface GitRun {
  stdin: Writable;
  stdout: Readable;
  stderr: Readable;
  /** The other end of its descriptor 3. */
  channel: Duplex;
  /** Ends it and all that it started. */
  stop: () => void;
  ended: Promise<{ exitCode: number | null }>;
}

/** From SIGTERM, at which git removes what it has not finished, to SIGKILL. */
const graceMs = 5_000;

/**
 * Runs git on a tenant's repository as the API's own user, which owns nothing but what tenants sent. `config` and `env`
 * are laid over what every run has.
 */
export function startGit(
  args: readonly string[],
  more: { config?: Readonly<Record<string, string>>; env: Readonly<Record<string, string>> },
): GitRun {
  const { fileBytes, addressBytes, cpuSeconds } = limits;
  const bounds = [`--fsize=${fileBytes}`, `--as=${addressBytes}`, `--cpu=${cpuSeconds}`, "--core=0", "--"];
  const child = spawn("/usr/bin/prlimit", [...bounds, "/usr/bin/git", ...args], {
    env: {
      PATH: "/usr/bin:/bin",
      HOME: "/nonexistent",
      LC_ALL: "C",
      GIT_CONFIG_NOSYSTEM: "1",
      GIT_CONFIG_GLOBAL: "/dev/null",
      GIT_ATTR_NOSYSTEM: "1",
      GIT_TERMINAL_PROMPT: "0",
      ...settings(more.config ?? {}),
      ...more.env,
    },
    stdio: ["pipe", "pipe", "pipe", "pipe"],
    detached: true,
    cwd: "/",
  });
  let closed = false;
  const signal = (name: NodeJS.Signals) => {
    try {
      if (child.pid !== undefined && !closed) process.kill(-child.pid, name);
    } catch {
      // The group is gone.
    }
  };
  const ended = once(child, "close").then(([exitCode]) => ({ exitCode: exitCode as number | null }));
  void ended
    .catch(() => undefined)
    .then(() => {
      closed = true;
    });
  // A reader that went away is known by the run's end.
  child.stdin.on("error", () => undefined);
  // Of a program that has ended Node drops the output that nobody reads yet.
  const stdout = new PassThrough();
  child.stdout.on("error", () => undefined).pipe(stdout);
  return {
    stdin: child.stdin,
    stdout,
    stderr: child.stderr,
    // Node opens what is more than the three as sockets.
    channel: child.stdio[3] as Duplex,
    stop: () => {
      signal("SIGTERM");
      const late = setTimeout(() => signal("SIGKILL"), graceMs);
      void ended.catch(() => undefined).then(() => clearTimeout(late));
    },
    ended,
  };
}

/** Runs git in a repository and answers what it printed, without the last newline; null when it failed. */
export async function askGit(
  repository: string,
  args: readonly string[],
  env: Readonly<Record<string, string>> = {},
): Promise<string | null> {
  const run = startGit(args, { env: { GIT_DIR: repository, ...env } });
  run.stdin.end();
  run.stderr.resume();
  const [output, { exitCode }] = await Promise.all([text(run.stdout), run.ended]);
  return exitCode === 0 ? output.replace(/\n$/, "") : null;
}
