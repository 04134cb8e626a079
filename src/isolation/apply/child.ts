import { arch } from "node:process";
import koffi from "koffi";
import { addressOf, bind, hasCode, libc, waitpid } from "./ffi.ts";

/**
 * A process of a few system calls. Some things can only be done from inside another namespace, and Node's threads must
 * never enter one. So a child is cloned that shares our memory (CLONE_VM: no page tables to copy, whatever the heap's
 * size), makes a fixed list of system calls, and then sleeps until it is killed. It runs no JavaScript: each call is a
 * makecontext(3) frame that runs libc's `syscall` and links to the next; the child's entry point is setcontext(3).
 */

export const CLONE_NEWUSER = 0x10000000;
export const CLONE_NEWNET = 0x40000000;
const CLONE_VM = 0x100;

/** System call numbers; they differ between architectures. */
export const numbers =
  arch === "arm64"
    ? {
        write: 64,
        openat: 56,
        close: 57,
        socket: 198,
        futex: 98,
        clockGettime: 113,
        ppoll: 73,
        prctl: 167,
        closeRange: 436,
      }
    : {
        write: 1,
        openat: 257,
        close: 3,
        socket: 41,
        futex: 202,
        clockGettime: 228,
        ppoll: 271,
        prctl: 157,
        closeRange: 436,
      };

/** One system call: its number and up to five arguments. */
export type ChildCall = readonly [number, ...(number | bigint)[]];

export interface Child {
  pid: number;
  /** Lets the child make its calls, and returns once it has made them all. */
  proceed: () => void;
  /** Kills and reaps it. */
  end: () => void;
}

const getcontext = bind<[bigint]>("getcontext", ["void *"]);
const makecontext = libc.func("void makecontext(void *context, void *entry, int count, ...)");
const clone = bind<[bigint, bigint, number, bigint]>("clone", ["void *", "void *", "int", "void *"]);
const futex = bind<[number, bigint, number, number, Uint8Array | null]>("syscall", [
  "long",
  "void *",
  "int",
  "int",
  "void *",
]);
const setcontextAddress = addressOf("setcontext");
const syscallAddress = addressOf("syscall");

// ucontext_t takes 968 bytes on x86-64 and 4,560 on arm64, and begins on both with uc_flags, uc_link (8), ss_sp (16),
// ss_flags (24) and ss_size (32). A frame is a context and, above it, the stack that its call runs on.
const contextBytes = 8192;
const frameBytes = 16384;
const maxCalls = 24;

// One arena for every child: a child is started, used and ended within one synchronous stretch of code.
const arena = koffi.alloc("uint8_t", frameBytes * (maxCalls + 1) + 32) as bigint;
const cloneStackTop = arena + BigInt(frameBytes * (maxCalls + 1));
/** What child and parent wait on: "proceed" (a word) and "done" (the seconds of a timespec). */
const proceedWord = cloneStackTop;
const doneWord = cloneStackTop + 16n;
const words = new DataView(koffi.view(proceedWord, 32));

const PR_SET_PDEATHSIG = 1;
const SIGKILL = 9;
const FUTEX_WAIT = 0;
const FUTEX_WAKE = 1;
/** A timespec of 100 ms. */
const patience = new Uint8Array(new BigInt64Array([0n, 100_000_000n]).buffer);

/** Text that outlives every child, as the address of a C string. */
export function constantText(text: string): bigint {
  const bytes = Buffer.from(`${text}\0`);
  const address = koffi.alloc("uint8_t", bytes.length) as bigint;
  new Uint8Array(koffi.view(address, bytes.length)).set(bytes);
  return address;
}

/**
 * Clones a child with `flags`. Told to proceed, it closes all descriptors from 3 on, so that the first one that `calls`
 * open is number 3, and makes the calls; one that fails does not stop the next. The caller must `end` it before going
 * back to the event loop. Costs 0.4 ms with new user and network namespaces.
 */
export function startChild(flags: number, calls: readonly ChildCall[]): Child {
  words.setUint32(0, 0, true);
  words.setBigUint64(16, 0n, true);
  layOut([
    // Should this process be killed right now, the child must not sleep on with its memory.
    [numbers.prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0],
    [numbers.futex, proceedWord, FUTEX_WAIT, 0, 0],
    [numbers.closeRange, 3, 0xffffffff, 0],
    ...calls,
    // The time is never 0: it tells the parent that all calls were made.
    [numbers.clockGettime, 0, doneWord],
    [numbers.futex, doneWord, FUTEX_WAKE, 1],
    [numbers.ppoll, 0, 0, 0, 0],
  ]);
  const pid = clone(setcontextAddress, cloneStackTop, flags | CLONE_VM, arena);
  return {
    pid,
    proceed: () => {
      words.setUint32(0, 1, true);
      futex(numbers.futex, proceedWord, FUTEX_WAKE, 1, null);
      waitUntilDone();
    },
    end: () => {
      process.kill(pid, "SIGKILL");
      waitpid(pid);
    },
  };
}

/** Writes the chain of frames; each returns into the next. */
function layOut(calls: readonly ChildCall[]): void {
  if (calls.length > maxCalls) throw new RangeError(`a child makes at most ${maxCalls} calls`);
  calls.forEach((call, index) => {
    const context = arena + BigInt(index * frameBytes);
    getcontext(context);
    const head = new DataView(koffi.view(context, 40));
    const next = index + 1 < calls.length ? context + BigInt(frameBytes) : 0n;
    head.setBigUint64(8, next, true);
    head.setBigUint64(16, context + BigInt(contextBytes), true);
    head.setBigUint64(32, BigInt(frameBytes - contextBytes), true);
    makecontext(context, syscallAddress, call.length, ...call.flatMap((argument) => ["intptr_t", argument]));
  });
}

function waitUntilDone(): void {
  for (let attempt = 0; attempt < 50; attempt++) {
    if (words.getUint32(16, true) !== 0) return;
    try {
      futex(numbers.futex, doneWord, FUTEX_WAIT, 0, patience);
    } catch (error) {
      // EAGAIN: it was done already.
      if (!hasCode(error, "EAGAIN", "EINTR", "ETIMEDOUT")) throw error;
    }
  }
  throw new Error("the child process did not finish its calls within 5 s");
}
