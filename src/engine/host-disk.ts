import { statfsSync } from "node:fs";
import { statfs } from "node:fs/promises";
import { BerthError } from "../core/errors.ts";
import { diskReserve } from "../core/host.ts";
import { keptFree } from "../core/placement.ts";

/** How many bytes are free where the host keeps its data. */
export async function freeDisk(dataDir: string): Promise<number> {
  const { bsize, bavail } = await statfs(dataDir);
  return bsize * bavail;
}

/**
 * To be asked before a job that fills the host's disk, such as a build, and while the API stores what clients send: nothing
 * comes to a host that has less of it free than it keeps, for that is its containers' and the database's. A later attempt may
 * find another host.
 * @throws BerthError `disk_full`
 */
export function requireDisk(dataDir: string): void {
  const { bsize, blocks, bavail } = statfsSync(dataDir);
  const why = keptFree({ diskFree: bsize * bavail, diskReserve: diskReserve(bsize * blocks) });
  if (why !== null) throw new BerthError("disk_full", `The host ${why}.`);
}
