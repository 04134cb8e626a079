import { readFileSync, renameSync, writeFileSync } from "node:fs";
import { hasCode } from "./apply/ffi.ts";
import type { ProcessId } from "./apply/process.ts";

/** What a worker writes down about a slot for itself and its successors. Each note is whole or not there. */
export interface OwnerNote {
  /** The container; null: nobody's yet. */
  id: string | null;
  projectId: string;
  network: "project" | "none";
}

/** Of a container's run, written once its first process exists and before it is let go. */
export interface RunNote {
  process: ProcessId;
  /** ISO 8601. */
  startedAt: string;
}

export function writeNote(path: string, note: OwnerNote | RunNote | ProcessId): void {
  writeFileSync(`${path}.new`, JSON.stringify(note), { mode: 0o600 });
  renameSync(`${path}.new`, path);
}

export const readOwner = (path: string): OwnerNote | null => readNote(path) as OwnerNote | null;
export const readRun = (path: string): RunNote | null => readNote(path) as RunNote | null;
export const readProcess = (path: string): ProcessId | null => readNote(path) as ProcessId | null;

function readNote(path: string): unknown {
  try {
    return JSON.parse(readFileSync(path, "utf8"));
  } catch (error) {
    if (hasCode(error, "ENOENT")) return null;
    throw error;
  }
}
