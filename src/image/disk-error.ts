import { BerthError } from "../core/errors.ts";

/** Rethrows an error of a write; a full disk or quota as BerthError `disk_full`. */
export function diskError(error: unknown): never {
  const code = (error as NodeJS.ErrnoException | null)?.code;
  if (code === "ENOSPC" || code === "EDQUOT") {
    throw new BerthError("disk_full", "The host's disk is full.", { cause: error });
  }
  throw error;
}
