import { closeSync, ftruncateSync, openSync, readFileSync, writeSync } from "node:fs";
import { flock, hasCode, LOCK_EX, LOCK_NB } from "../isolation/apply/ffi.ts";

/** One supervisor per data directory. The kernel holds the lock, so it ends with its process, however that ends. */
export type Lock = { taken: true } | { taken: false; holder: number };

/** Takes the lock for the rest of this process's life, or tells who has it. */
export function takeLock(path: string): Lock {
  // a+: neither a process that fails to get the lock, nor a crash in between, may lose the holder's pid.
  const fd = openSync(path, "a+", 0o600);
  try {
    flock(fd, LOCK_EX | LOCK_NB);
  } catch (error) {
    closeSync(fd);
    if (!hasCode(error, "EAGAIN", "EWOULDBLOCK")) throw error;
    return { taken: false, holder: Number(readFileSync(path, "utf8").trim()) };
  }
  ftruncateSync(fd);
  writeSync(fd, `${String(process.pid)}\n`);
  return { taken: true };
}

/** Takes the lock once its holder has ended. */
export async function awaitLock(path: string): Promise<void> {
  await flock.later(openSync(path, "a+", 0o600), LOCK_EX);
}
