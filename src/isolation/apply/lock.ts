import { closeSync, mkdirSync, openSync } from "node:fs";
import { BerthError } from "../../core/errors.ts";
import { flock, hasCode, LOCK_EX, LOCK_NB } from "./ffi.ts";

/**
 * Makes this process the only one that drives the data directory's host. The lock lasts as long as the returned
 * descriptor, which no child gets. @throws BerthError `unavailable` when another process has it.
 */
export function lockDataDir(dataDir: string): number {
  mkdirSync(`${dataDir}/worker`, { recursive: true, mode: 0o711 });
  const lock = openSync(`${dataDir}/worker/lock`, "w");
  try {
    flock(lock, LOCK_EX | LOCK_NB);
    return lock;
  } catch (error) {
    closeSync(lock);
    if (!hasCode(error, "EAGAIN")) throw error;
    throw new BerthError("unavailable", `Another worker uses the data directory ${dataDir}.`, { cause: error });
  }
}
