import { getSystemErrorMessage, getSystemErrorName } from "node:util";
import koffi from "koffi";

/**
 * Calls into libc, in process. A spawned helper costs milliseconds and a parser; these cost microseconds. No call here
 * moves one of Node's threads to another namespace: that is what a cloned child is for (child.ts).
 */

/** A call that failed. `code` is the errno's name, such as `EBUSY`. */
export class SyscallError extends Error {
  readonly call: string;
  readonly code: string;
  readonly errno: number;

  constructor(call: string, errno: number, about = "") {
    const code = getSystemErrorName(-errno);
    super(`${call}${about === "" ? "" : ` ${about}`}: ${code}: ${getSystemErrorMessage(-errno)}`);
    this.name = "SyscallError";
    this.call = call;
    this.code = code;
    this.errno = errno;
  }
}

/** Whether an error (ours or Node's) has this errno name. */
export function hasCode(error: unknown, ...codes: string[]): boolean {
  return error instanceof Error && "code" in error && codes.includes(String(error.code));
}

/** What a call takes: integers and addresses as numbers or bigints, memory as a Buffer, text as UTF-8. */
type Argument = number | bigint | string | Uint8Array | null;

/** A call that returns -1 and sets errno on failure; then this throws SyscallError. */
export interface Call<A extends readonly Argument[]> {
  (...args: A): number;
  /** The same on a thread of libuv's pool (costs 0.12 ms): for calls that can block. */
  later(...args: A): Promise<number>;
}

type Native = ((...args: Argument[]) => number) & {
  async: (...args: [...Argument[], (error: Error | null, result: number) => void]) => void;
};

export const libc = koffi.load(null);

/** Binds a function of libc that reports failure by -1 and errno. `types` are koffi's names of the arguments' types. */
export function bind<A extends readonly Argument[]>(name: string, types: readonly string[]): Call<A> {
  return checked<A>(name, libc.func(name, "int", [...types]), []);
}

/** Binds a system call that libc has no wrapper for everywhere; `number` is the same on all architectures since 5.1. */
export function bindSyscall<A extends readonly Argument[]>(
  name: string,
  number: number,
  types: readonly string[],
): Call<A> {
  return checked<A>(name, libc.func("syscall", "int", ["long", ...types]), [number]);
}

function checked<A extends readonly Argument[]>(name: string, native: Native, first: Argument[]): Call<A> {
  const call = (...args: A): number => {
    const result = native(...first, ...args);
    if (result === -1) throw new SyscallError(name, koffi.errno(), aboutOf(args));
    return result;
  };
  const later = (...args: A): Promise<number> =>
    new Promise((resolve, reject) => {
      native.async(...first, ...args, (error, result) => {
        if (error !== null) reject(error);
        else if (result === -1) reject(new SyscallError(name, koffi.errno(), aboutOf(args)));
        else resolve(result);
      });
    });
  return Object.assign(call, { later });
}

/** The text arguments (paths, keys) of a failed call, for its message. */
function aboutOf(args: readonly Argument[]): string {
  return args.filter((arg) => typeof arg === "string").join(" ");
}

/** The address of a libc function, to hand to another. */
export function addressOf(name: string): bigint {
  return libc.symbol(name) as bigint;
}

// ── Files ────────────────────────────────────────────────────────────────────────────────────────────────────

export const O_PATH = 0o10000000;
export const O_DIRECTORY = 0o200000;
export const O_CLOEXEC = 0o2000000;

/** openat2(2) `resolve` flags. */
export const RESOLVE_NO_XDEV = 0x01;
export const RESOLVE_NO_MAGICLINKS = 0x02;
export const RESOLVE_IN_ROOT = 0x10;

const rawOpenat2 = bindSyscall<[number, string, Uint8Array, number]>("openat2", 437, [
  "int",
  "str",
  "void *",
  "size_t",
]);

/**
 * Opens `path` below the directory `dirFd`; returns a descriptor to be closed by fs.closeSync. With RESOLVE_IN_ROOT
 * neither `..` nor a symlink leaves the directory, whoever changes it meanwhile (openat2(2)).
 */
export function openat2(dirFd: number, path: string, how: { flags: number; mode?: number; resolve: number }): number {
  const openHow = new BigUint64Array([BigInt(how.flags | O_CLOEXEC), BigInt(how.mode ?? 0), BigInt(how.resolve)]);
  return rawOpenat2(dirFd, path, new Uint8Array(openHow.buffer), openHow.byteLength);
}

export const LOCK_EX = 2;
export const LOCK_NB = 4;
/** flock(2): the lock lives as long as the open file description. With LOCK_NB a held lock is EWOULDBLOCK (EAGAIN). */
export const flock: Call<[fd: number, operation: number]> = bind("flock", ["int", "int"]);

/** ioctl(2) with an integer or with memory as its argument. */
export const ioctlNumber: Call<[fd: number, request: number, argument: number]> = bind("ioctl", [
  "int",
  "ulong",
  "ulong",
]);
export const ioctlBuffer: Call<[fd: number, request: number, argument: Uint8Array]> = bind("ioctl", [
  "int",
  "ulong",
  "void *",
]);

// ── Processes ────────────────────────────────────────────────────────────────────────────────────────────────

/** A descriptor that means this very process, also after its number has been reused. ESRCH: there is none. */
const rawPidfdOpen = bindSyscall<[number, number]>("pidfd_open", 434, ["int", "uint"]);
export function pidfdOpen(pid: number): number {
  return rawPidfdOpen(pid, 0);
}

const rawPidfdSendSignal = bindSyscall<[number, number, null, number]>("pidfd_send_signal", 424, [
  "int",
  "int",
  "void *",
  "uint",
]);
/** Sends a signal by number (0: only asks). ESRCH: the process is gone. */
export function pidfdSendSignal(pidfd: number, signal: number): void {
  rawPidfdSendSignal(pidfd, signal, null, 0);
}

const rawPidfdGetfd = bindSyscall<[number, number, number]>("pidfd_getfd", 438, ["int", "int", "uint"]);
/** A duplicate, in this process, of descriptor `fd` of another. EBADF: it has no such descriptor. */
export function pidfdGetfd(pidfd: number, fd: number): number {
  return rawPidfdGetfd(pidfd, fd, 0);
}

const rawWaitpid = bind<[number, Uint8Array | null, number]>("waitpid", ["int", "void *", "int"]);
const WAIT_ALL = 0x40000000;
/** Reaps a child of any kind (`__WALL`), waiting for its end. Returns the wait status. */
export function waitpid(pid: number): number {
  const status = Buffer.alloc(4);
  rawWaitpid(pid, status, WAIT_ALL);
  return status.readInt32LE();
}
