import { randomUUID } from "node:crypto";
import { existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { BerthError } from "../core/errors.ts";
import { userOf } from "./account.ts";
import { identify, type ProcessId, signalProcess } from "./apply/process.ts";
import { runtimeError } from "./apply/runtime.ts";
import { type ChildProcess, run } from "./apply/spawn.ts";
import type { Parts } from "./parts.ts";
import type { ProcessSpec, RuntimeSpec } from "./plan/spec.ts";

/** A program to run once inside a running container; what is left out is as the container's own process has it. */
export interface ExecRequest {
  args: readonly string[];
  /** `NAME=value`, laid over the container's own environment. */
  env?: readonly string[];
  user?: string;
  cwd?: string;
  /** All of its input; none: /dev/null. */
  stdin?: string;
  timeoutSeconds?: number;
  /** Aborting ends the program. */
  signal?: AbortSignal;
}

export interface ExecResult {
  /** 128 + n for a program that signal n ended. */
  exitCode: number;
  stdout: string;
  stderr: string;
  /** Whether output beyond the limit was dropped. */
  truncated: boolean;
  timedOut: boolean;
}

/** Bytes kept of each stream. */
const outputLimit = 1 << 20;
/** From the end of its time to the end of a runtime that has not begun the program. */
const runtimePatienceMs = 5000;
const SIGKILL = 9;

/**
 * Runs a program in the slot's container, under the same limits, filter and capabilities as the container's process.
 * What it leaves in the background goes on; it does not hold up the answer.
 * @throws BerthError `command_not_found`, `command_not_executable`, `invalid_user`, `cancelled`; `file_not_found` when it has
 *   no directory `cwd`
 */
export async function execIn(parts: Parts, slot: number, request: ExecRequest): Promise<ExecResult> {
  const paths = parts.slot(slot);
  const base = (JSON.parse(readFileSync(paths.config, "utf8")) as RuntimeSpec).process;
  const token = randomUUID();
  const processFile = `${paths.dir}/exec-${token}.json`;
  const pidFile = `${paths.dir}/exec-${token}.pid`;
  const program = execProcess(base, paths.rootfs, request);
  writeFileSync(processFile, JSON.stringify(program), { mode: 0o600 });
  try {
    const result = await run({
      file: parts.runtime.file,
      args: [...parts.runtime.args, "exec", `--process=${processFile}`, `--pid-file=${pidFile}`, paths.name],
      maxOutput: outputLimit,
      ...(request.stdin !== undefined && { input: Buffer.from(request.stdin) }),
      ...(request.timeoutSeconds !== undefined && { timeoutMs: request.timeoutSeconds * 1000 }),
      ...(request.signal !== undefined && { signal: request.signal }),
      kill: (child) => void endProgram(child, pidFile),
    });
    const stderr = result.stderr.bytes.toString();
    const exitCode = result.exitCode ?? 128 + (result.signal ?? 0);
    // Without a pid file the program never began: what is on stderr are the runtime's words.
    if (!existsSync(pidFile) && exitCode !== 0 && !result.timedOut) {
      if (request.signal?.aborted === true) throw new BerthError("cancelled", "The command was cancelled.");
      throw runtimeError(stderr, program);
    }
    return {
      exitCode,
      stdout: result.stdout.bytes.toString(),
      stderr,
      truncated: result.stdout.truncated || result.stderr.truncated,
      timedOut: result.timedOut,
    };
  } finally {
    rmSync(processFile, { force: true });
    rmSync(pidFile, { force: true });
  }
}

function execProcess(base: ProcessSpec, rootfs: string, request: ExecRequest): ProcessSpec {
  if (request.args.length === 0) throw new BerthError("command_not_found", "No command was given.");
  const env = new Map(base.env.map((entry) => [entry.slice(0, entry.indexOf("=")), entry]));
  const user = request.user === undefined ? null : userOf(rootfs, request.user);
  if (user !== null) env.set("HOME", `HOME=${user.home}`);
  for (const entry of request.env ?? []) env.set(entry.slice(0, entry.indexOf("=")), entry);
  return {
    ...base,
    terminal: false,
    args: request.args,
    env: [...env.values()],
    cwd: request.cwd ?? base.cwd,
    ...(user !== null && { user: { uid: user.uid, gid: user.gid, umask: 0o022, additionalGids: user.additionalGids } }),
  };
}

/**
 * Kills the program as soon as the runtime has noted its pid. A runtime that is killed before that may leave a program
 * that nobody knows, so it is only killed when it makes no progress.
 */
async function endProgram(runtime: ChildProcess, pidFile: string): Promise<void> {
  const ended = new AbortController();
  void runtime.ended.then(() => {
    ended.abort();
  });
  const patience = performance.now() + runtimePatienceMs;
  while (!ended.signal.aborted) {
    const program = pidOf(pidFile);
    if (program !== null) signalProcess(program, SIGKILL);
    else if (performance.now() > patience) runtime.kill(SIGKILL);
    await sleep(5);
  }
}

/** The program's process on the host; null: it has not begun, or it is over. */
function pidOf(pidFile: string): ProcessId | null {
  return existsSync(pidFile) ? identify(Number(readFileSync(pidFile, "utf8"))) : null;
}
