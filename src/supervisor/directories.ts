import { chmodSync, chownSync, mkdirSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import type { Config } from "../config.ts";
import type { User } from "./users.ts";

/** Where the supervisor and its children keep what they have; see `makeDirectories` for who may do what there. */
export interface Directories {
  /** The database's files and its log. */
  database: string;
  databaseLog: string;
  /** The database's Unix socket. */
  socket: string;
  lock: string;
  token: string;
  secretKey: string;
  /** Node's compiled code, by role: saves 0.2 s of each role's start. Each is its reader's alone, since it is executed. */
  cache: { api: string; worker: string };
}

export function directoriesOf(dataDir: string, runDir: string): Directories {
  return {
    database: join(dataDir, "db"),
    databaseLog: join(dataDir, "db.log"),
    socket: join(runDir, "db"),
    lock: join(dataDir, "lock"),
    token: join(dataDir, "token"),
    secretKey: join(dataDir, "secret-key"),
    cache: { api: join(dataDir, "cache/api"), worker: join(dataDir, "cache/worker") },
  };
}

/**
 * The nearest directory at or above `path` that users other than its owner can't pass; null when they can reach it.
 * What does not exist yet will be made passable.
 */
export function closedParent(path: string): string | null {
  const stat = statSync(path, { throwIfNoEntry: false });
  if (stat !== undefined && (stat.mode & 0o001) === 0) return path;
  return path === "/" ? null : closedParent(dirname(path));
}

function make(path: string, mode: number, owner: User): void {
  mkdirSync(path, { recursive: true });
  chownSync(path, owner.uid, owner.gid);
  chmodSync(path, mode);
}

/** Makes the data directory, whose files other users reach by name only. */
export function makeDataDirectory(dataDir: string): void {
  mkdirSync(dataDir, { recursive: true });
  chmodSync(dataDir, 0o711);
}

/** Whose the directories are. Without root all three are the one user there is. */
export interface Owners {
  supervisor: User;
  api: User;
  database: User;
}

/**
 * Makes them with their owners: the run directory is the supervisor's and only passed by others, the database's files
 * are its user's alone, the blobs and the
 * repositories that are pushed to Berth are the API's.
 */
export function makeDirectories(config: Pick<Config, "dataDir" | "runDir" | "blobStore">, owners: Owners): void {
  const { dataDir, runDir, blobStore } = config;
  const { database, socket, cache } = directoriesOf(dataDir, runDir);
  make(database, 0o700, owners.database);
  make(join(dataDir, "blobs"), 0o750, owners.api);
  if (blobStore.kind === "file") make(blobStore.directory, 0o750, owners.api);
  make(join(dataDir, "git"), 0o700, owners.api);
  make(dirname(cache.api), 0o711, owners.supervisor);
  make(cache.api, 0o700, owners.api);
  make(cache.worker, 0o700, owners.supervisor);
  if (owners.supervisor.uid === 0) make(dirname(runDir), 0o711, owners.supervisor);
  make(runDir, 0o711, owners.supervisor);
  make(socket, 0o711, owners.database);
}
