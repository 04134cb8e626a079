import { closeSync, mkdirSync, openSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { blocks } from "../plan/layout.ts";
import { flock, hasCode, LOCK_EX } from "./ffi.ts";

/** Claims of all instances of the machine, one file a block: the data directory of the one that holds it. */
const claims = "/run/berth/blocks";

/**
 * Claims a block of slots, and with it a range of user ids and a subnet, that no other instance of the machine has. An
 * instance keeps its block for life (`<dataDir>/worker/block`), since its disks are owned by ids of that range. A claim
 * whose data directory no longer says so is void.
 */
export function claimBlock(dataDir: string): number {
  mkdirSync(claims, { recursive: true, mode: 0o711 });
  mkdirSync(`${dataDir}/worker`, { recursive: true, mode: 0o711 });
  const lock = openSync(`${claims}/lock`, "w");
  try {
    flock(lock, LOCK_EX);
    const kept = readBlock(dataDir);
    if (kept !== null && !isFree(kept, dataDir)) {
      throw new Error(`block ${String(kept)} of user ids is held by another instance (${claims}/${String(kept)})`);
    }
    const block = kept ?? Array.from({ length: blocks }, (_, n) => n).find((n) => isFree(n, dataDir));
    if (block === undefined) {
      throw new Error(`all ${String(blocks)} blocks of user ids are held by other instances (${claims})`);
    }
    const note = `${dataDir}/worker/block`;
    writeFileSync(`${note}.new`, String(block));
    renameSync(`${note}.new`, note);
    writeFileSync(`${claims}/${String(block)}`, dataDir);
    return block;
  } finally {
    closeSync(lock);
  }
}

/** Whether nobody else holds the block: no claim, our own, or one that its holder doesn't know of. */
function isFree(block: number, dataDir: string): boolean {
  const holder = readText(`${claims}/${String(block)}`);
  return holder === null || holder === dataDir || readBlock(holder) !== block;
}

function readBlock(dataDir: string): number | null {
  const text = readText(`${dataDir}/worker/block`);
  return text !== null && /^\d+$/.test(text) && Number(text) < blocks ? Number(text) : null;
}

function readText(path: string): string | null {
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    if (hasCode(error, "ENOENT", "ENOTDIR")) return null;
    throw error;
  }
}
