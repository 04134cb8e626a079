import { closeSync } from "node:fs";
import { Socket } from "node:net";
import { constants } from "node:os";
import { bind, libc, SyscallError } from "./ffi.ts";

/**
 * The one place that starts programs. posix_spawn(3) by FFI, since Node's own spawn copies page tables and blocks the
 * event loop while it does (2 ms at 74 MB, 14 ms at 540 MB; this 0.13 ms). Arguments are vectors, never a shell.
 */
export interface SpawnOptions {
  /** Absolute path of the program. */
  file: string;
  /** argv[1] and on. */
  args: readonly string[];
  /** Complete environment. */
  env?: Readonly<Record<string, string>>;
  /** Child descriptor → ours. 0 to 2 that are not named are /dev/null. */
  fds?: Readonly<Record<number, number>>;
}

/** How a child ended. `signal` null: by itself. */
export interface ChildEnd {
  exitCode: number | null;
  signal: number | null;
}

export interface ChildProcess {
  pid: number;
  ended: Promise<ChildEnd>;
  /** Sends a signal as long as the child has not been reaped, so that its pid can't be another's. */
  kill: (signal: number) => void;
}

const posixSpawn = libc.func(
  "int posix_spawn(_Out_ int *pid, const char *path, void *actions, void *attr, const char **argv, const char **envp)",
);
const actionsInit = libc.func("int posix_spawn_file_actions_init(void *actions)");
const actionsDup2 = libc.func("int posix_spawn_file_actions_adddup2(void *actions, int fd, int newfd)");
const actionsOpen = libc.func(
  "int posix_spawn_file_actions_addopen(void *actions, int fd, const char *path, int flags, uint mode)",
);
const actionsDestroy = libc.func("int posix_spawn_file_actions_destroy(void *actions)");
const attrInit = libc.func("int posix_spawnattr_init(void *attr)");
const attrSetSigdefault = libc.func("int posix_spawnattr_setsigdefault(void *attr, void *set)");
const attrSetFlags = libc.func("int posix_spawnattr_setflags(void *attr, short flags)");
const pipe2 = bind<[Uint8Array, number]>("pipe2", ["void *", "int"]);
const waitpidNow = bind<[number, Uint8Array, number]>("waitpid", ["int", "void *", "int"]);

const O_RDWR = 2;
const O_CLOEXEC = 0o2000000;
const WNOHANG = 1;
const POSIX_SPAWN_SETSIGDEF = 0x04;
const POSIX_SPAWN_SETSIGMASK = 0x08;
const POSIX_SPAWN_SETSID = 0x80;
const defaultEnv = { PATH: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" };

// Sizes of glibc's opaque types, rounded up: posix_spawnattr_t 336, posix_spawn_file_actions_t 80, sigset_t 128.
// The attributes are the same for every child: own session (a terminal's Ctrl-C is not for it), nothing blocked, and
// every signal at its default, for Node ignores SIGPIPE and an ignored signal stays ignored across execve.
const attributes = Buffer.alloc(512);
attrInit(attributes);
attrSetSigdefault(attributes, Buffer.alloc(128, 0xff));
attrSetFlags(attributes, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSID);

/** Children that have not been reaped, by pid. */
const children = new Map<number, (end: ChildEnd) => void>();
let listening = false;

/** Starts a program. @throws SyscallError (ENOENT, EACCES, …) when it can't be executed. */
export function spawn({ file, args, env = defaultEnv, fds = {} }: SpawnOptions): ChildProcess {
  if (!listening) {
    process.on("SIGCHLD", reap);
    listening = true;
  }
  const actions = Buffer.alloc(128);
  const pid = [0];
  actionsInit(actions);
  try {
    for (const fd of [0, 1, 2]) {
      if (fds[fd] === undefined) actionsOpen(actions, fd, "/dev/null", O_RDWR, 0);
    }
    for (const [child, ours] of Object.entries(fds)) actionsDup2(actions, ours, Number(child));
    const environment = Object.entries(env).map(([name, value]) => `${name}=${value}`);
    const error = posixSpawn(pid, file, actions, attributes, [file, ...args, null], [...environment, null]) as number;
    if (error !== 0) throw new SyscallError("posix_spawn", error, file);
  } finally {
    actionsDestroy(actions);
  }
  return track(pid[0] ?? 0);
}

function track(pid: number): ChildProcess {
  const ended = new Promise<ChildEnd>((resolve) => children.set(pid, resolve));
  return {
    pid,
    ended,
    kill: (signal) => {
      reap();
      if (children.has(pid)) process.kill(pid, signal);
    },
  };
}

/** SIGCHLDs coalesce, so each of ours is asked; libuv asks only for its own, so neither takes the other's. */
function reap(): void {
  const status = Buffer.alloc(4);
  for (const [pid, resolve] of children) {
    if (waitpidNow(pid, status, WNOHANG) !== pid) continue;
    children.delete(pid);
    const word = status.readInt32LE();
    const signal = word & 0x7f;
    resolve(signal === 0 ? { exitCode: (word >> 8) & 0xff, signal: null } : { exitCode: null, signal });
  }
}

/** A pipe, close-on-exec on both ends; each end is to be closed by whoever holds it. */
export function openPipe(): { read: number; write: number } {
  const fds = Buffer.alloc(8);
  pipe2(fds, O_CLOEXEC);
  return { read: fds.readInt32LE(0), write: fds.readInt32LE(4) };
}

/** What a program printed, up to a limit; the rest is read and dropped, so that it can't block the program. */
export interface Output {
  bytes: Buffer;
  truncated: boolean;
}

/** What a finished program left. `timedOut`: it was killed for that. */
export interface RunResult extends ChildEnd {
  stdout: Output;
  stderr: Output;
  timedOut: boolean;
}

/** How long output is still read after the program has ended: what it left in the background may hold the pipes. */
const lingerMs = 50;

/**
 * Runs a program to its end, with its output in memory.
 * @param options.maxOutput bytes kept of each stream (1 MiB)
 * @param options.signal aborting it ends the program; its result is then as after any other end
 * @param options.kill how to end it when `timeoutMs` have passed or the signal aborts, instead of SIGKILL
 */
export async function run(
  options: Omit<SpawnOptions, "fds"> & {
    input?: Uint8Array;
    maxOutput?: number;
    timeoutMs?: number;
    signal?: AbortSignal;
    kill?: (child: ChildProcess) => void;
  },
): Promise<RunResult> {
  const { input, maxOutput = 1 << 20, timeoutMs, signal } = options;
  const kill = options.kill ?? ((started) => started.kill(constants.signals.SIGKILL));
  const stdin = input === undefined ? null : openPipe();
  const stdout = openPipe();
  const stderr = openPipe();
  const theirs = [stdout.write, stderr.write, ...(stdin === null ? [] : [stdin.read])];
  let child: ChildProcess;
  try {
    child = spawn({ ...options, fds: { 1: stdout.write, 2: stderr.write, ...(stdin !== null && { 0: stdin.read }) } });
  } catch (error) {
    for (const fd of [stdout.read, stderr.read, ...(stdin === null ? [] : [stdin.write])]) closeSync(fd);
    throw error;
  } finally {
    for (const fd of theirs) closeSync(fd);
  }
  if (stdin !== null && input !== undefined) writeAll(stdin.write, input);
  const streams = [collect(stdout.read, maxOutput), collect(stderr.read, maxOutput)] as const;

  let timedOut = false;
  const timer =
    timeoutMs === undefined
      ? undefined
      : setTimeout(() => {
          timedOut = true;
          kill(child);
        }, timeoutMs);
  const abort = (): void => kill(child);
  signal?.addEventListener("abort", abort, { once: true });
  if (signal?.aborted === true) abort();
  // Nothing else may keep the event loop alive until the end is seen.
  const watch = setInterval(reap, 500);
  const end = await child.ended;
  clearInterval(watch);
  clearTimeout(timer);
  signal?.removeEventListener("abort", abort);
  const linger = setTimeout(() => {
    for (const stream of streams) stream.stop();
  }, lingerMs);
  const outputs = await Promise.all([streams[0].output, streams[1].output]);
  clearTimeout(linger);
  return { ...end, stdout: outputs[0], stderr: outputs[1], timedOut };
}

/** Writes to a pipe and closes it; that the reader is gone is no error. */
function writeAll(fd: number, input: Uint8Array): void {
  const socket = new Socket({ fd, readable: false, writable: true });
  socket.on("error", () => socket.destroy());
  socket.end(input);
}

function collect(fd: number, limit: number): { output: Promise<Output>; stop: () => void } {
  const socket = new Socket({ fd, readable: true, writable: false });
  const chunks: Buffer[] = [];
  let size = 0;
  let truncated = false;
  socket.on("data", (chunk: Buffer) => {
    const kept = chunk.subarray(0, limit - size);
    truncated ||= kept.length < chunk.length;
    if (kept.length > 0) chunks.push(kept);
    size += kept.length;
  });
  const output = new Promise<Output>((resolve) => {
    socket.on("error", () => socket.destroy());
    socket.on("close", () => {
      resolve({ bytes: Buffer.concat(chunks), truncated });
    });
  });
  return { output, stop: () => socket.destroy() };
}
