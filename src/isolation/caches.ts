import { createHash } from "node:crypto";
import { existsSync, mkdirSync } from "node:fs";
import { mkdir, readdir, rename, rm, rmdir, stat, statfs, utimes } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { unlessAborted } from "../core/abort.ts";
import { BerthError } from "../core/errors.ts";
import type { Disks } from "./apply/disk.ts";
import { listLoops } from "./apply/loop.ts";
import { MOUNT_ATTR_NOSUID } from "./apply/mount-api.ts";
import { mountsBelow } from "./apply/mount-table.ts";
import type { Layout } from "./plan/layout.ts";
import { SharedLock } from "./shared-lock.ts";

export interface CacheLimits {
  /** Bytes that one cache may hold. */
  cacheBytes: number;
  /** Bytes and caches that a project may have on a host before the oldest go. */
  projectBytes: number;
  projectCaches: number;
  /** Caches that a project may use at the same time: those can't go, whatever is written to them. */
  projectInUse: number;
}

const defaultLimits: CacheLimits = {
  cacheBytes: 10 * 2 ** 30,
  projectBytes: 20 * 2 ** 30,
  projectCaches: 100,
  projectInUse: 16,
};
/** One that was not used for so long is removed; its mount goes much earlier. */
const uselessMs = 7 * 24 * 3600 * 1000;
const idleMs = 60_000;

export interface CacheRequest {
  projectId: string;
  /** Names the cache within the project. */
  id: string;
  /** `private`: nobody else uses it at the same time, for each has one of their own; `locked`: they wait instead. */
  sharing: "shared" | "private" | "locked";
  /** Fills an empty cache, whose directory becomes what `path` is. One that could not be filled is filled again. */
  begin: (directory: string) => Promise<void>;
  signal: AbortSignal;
}

export interface OpenCache {
  /** Its directory, for a mount of kind `directory`. */
  path: string;
  /** Idempotent. To be called when no process can write any more. */
  close(): void;
}

interface StoredCache {
  name: string;
  bytes: number;
  usedAt: number;
}

/**
 * What builds keep from one to the next (`RUN --mount=type=cache`): each cache is a disk of its own, a file of its project's
 * directory, so that its bytes and inodes are bounded, and no file of a tenant is ever one of the host's. Owners are kept as
 * the processes see them, whichever host ids they have. A disk stays mounted while it is used, out of the host's sight.
 *
 * A project never takes more of the host than `projectBytes + projectInUse × cacheBytes`: none more is opened while what is
 * in use and can't go is too much.
 */
export class Caches {
  readonly #disks: Disks;
  readonly #dir: string;
  readonly #mounts: string;
  readonly #limits: CacheLimits;
  readonly #locks = new Map<string, SharedLock>();
  /** By name, how many have it open: none has no entry. */
  readonly #users = new Map<string, number>();
  /** By name, while it is open: resolves when there is room for it. */
  readonly #rooms = new Map<string, Promise<void>>();
  /** By name: resolves when its directory is there. */
  readonly #ready = new Map<string, Promise<void>>();
  readonly #mounted: Set<string>;

  /** What an earlier worker has left mounted is taken over. */
  constructor(
    disks: Disks,
    { caches, cacheMounts }: Pick<Layout, "caches" | "cacheMounts">,
    limits: CacheLimits = defaultLimits,
  ) {
    this.#disks = disks;
    this.#limits = limits;
    this.#dir = caches;
    this.#mounts = cacheMounts;
    mkdirSync(caches, { recursive: true, mode: 0o700 });
    mkdirSync(cacheMounts, { recursive: true, mode: 0o700 });
    this.#mounted = new Set(mountsBelow(cacheMounts).map(({ path }) => path));
  }

  /**
   * Opens a cache, which is made when it is not there, in the place of the oldest when the project has too much.
   * @throws the signal's reason; BerthError `quota_exceeded` when what the project uses now is too much already,
   *   `start_failed` when its disk is damaged beyond repair
   */
  async open({ projectId, id, sharing, begin, signal }: CacheRequest): Promise<OpenCache> {
    const hash = createHash("sha256").update(id).digest("hex").slice(0, 40);
    const { name, release } =
      sharing === "private"
        ? this.#takeCopy(`${projectId}/${hash}`)
        : await this.#take(`${projectId}/${hash}-0`, sharing === "locked", signal);
    const close = this.#use(name, release);
    let ready: Promise<void> | undefined;
    try {
      // Who opens it at the same time waits, and fails, with the first.
      const room = this.#rooms.get(name) ?? this.#makeRoom(projectId, name);
      this.#rooms.set(name, room);
      await room;
      ready = this.#ready.get(name);
      if (ready === undefined) {
        ready = this.#begin(name, begin);
        this.#ready.set(name, ready);
        ready.catch(() => this.#ready.delete(name));
      }
      await unlessAborted(ready, signal);
      const now = new Date();
      await utimes(this.#image(name), now, now);
      return { path: `${this.#place(name)}/content`, close };
    } catch (error) {
      // While it is still filled, which nobody waits for any more, it is used.
      if (ready === undefined) close();
      else ready.then(close, close);
      throw error;
    }
  }

  /** Removes a project's caches, but for those in use. Answers how many bytes of the host's disk they took. */
  async prune(projectId: string): Promise<number> {
    let bytes = 0;
    for (const cache of await this.#stored(projectId)) if (await this.#remove(cache.name)) bytes += cache.bytes;
    return bytes;
  }

  /** Removes what was not used for long, and the oldest where a project has too much; unmounts what is idle. */
  async tidy(): Promise<void> {
    for (const projectId of await readdir(this.#dir)) await this.#tidyProject(projectId, this.#limits.projectCaches);
  }

  /** Answers how many bytes are left: more than a project may have when those are in use. */
  async #tidyProject(projectId: string, most: number): Promise<number> {
    const oldestFirst = (await this.#stored(projectId)).toSorted((one, other) => one.usedAt - other.usedAt);
    let total = oldestFirst.reduce((sum, { bytes }) => sum + bytes, 0);
    let count = oldestFirst.length;
    for (const { name, bytes, usedAt } of oldestFirst) {
      const unusedMs = Date.now() - usedAt;
      const useless = unusedMs > uselessMs || total > this.#limits.projectBytes || count > most;
      if (useless && (await this.#remove(name))) {
        total -= bytes;
        count--;
      } else if (unusedMs > idleMs) await this.#ifFree(name, () => this.#unmount(name));
    }
    return total;
  }

  async #stored(projectId: string): Promise<StoredCache[]> {
    const files = await readdir(`${this.#dir}/${projectId}`).catch(() => []);
    const found: StoredCache[] = [];
    for (const file of files) {
      if (!file.endsWith(".img")) continue;
      const stats = await stat(`${this.#dir}/${projectId}/${file}`).catch(() => null);
      if (stats === null) continue;
      const name = `${projectId}/${file.slice(0, -".img".length)}`;
      found.push({ name, bytes: Math.max(stats.blocks * 512, await this.#used(name)), usedAt: stats.mtimeMs });
    }
    return found;
  }

  /** Bytes in a disk that is mounted: much of what was written last is still in memory, and its file does not show it. */
  async #used(name: string): Promise<number> {
    const place = this.#place(name);
    if (!this.#mounted.has(place)) return 0;
    const disk = await statfs(place).catch(() => null);
    return disk === null ? 0 : (disk.blocks - disk.bfree) * disk.bsize;
  }

  async #take(name: string, alone: boolean, signal: AbortSignal): Promise<{ name: string; release: () => void }> {
    return { name, release: await this.#lock(name).take(alone, signal) };
  }

  /** The first of the private copies that nobody uses. Number 0 is the one that is shared. */
  #takeCopy(prefix: string): { name: string; release: () => void } {
    for (let number = 1; ; number++) {
      const name = `${prefix}-${String(number)}`;
      const release = this.#lock(name).takeNow();
      if (release !== null) return { name, release };
    }
  }

  /** Counts a user of a cache until it is closed, which can be done again. */
  #use(name: string, release: () => void): () => void {
    this.#users.set(name, (this.#users.get(name) ?? 0) + 1);
    let open = true;
    return () => {
      if (!open) return;
      open = false;
      const others = (this.#users.get(name) ?? 0) - 1;
      if (others === 0) {
        this.#users.delete(name);
        this.#rooms.delete(name);
      } else this.#users.set(name, others);
      release();
    };
  }

  #lock(name: string): SharedLock {
    const lock = this.#locks.get(name) ?? new SharedLock();
    this.#locks.set(name, lock);
    return lock;
  }

  async #begin(name: string, begin: CacheRequest["begin"]): Promise<void> {
    const [image, place] = [this.#image(name), this.#place(name)];
    if (!this.#mounted.has(place)) {
      if (!existsSync(image)) await this.#disks.createAt(image, this.#limits.cacheBytes);
      await mkdir(place, { recursive: true, mode: 0o700 });
      await detached(image);
      // What is deleted in it is given back to the host.
      await this.#disks.mountAt(image, place, { flags: ["discard"], attributes: MOUNT_ATTR_NOSUID });
      this.#mounted.add(place);
    }
    const content = `${place}/content`;
    if (existsSync(content)) return;
    const unfinished = `${content}.new`;
    await rm(unfinished, { recursive: true, force: true });
    await mkdir(unfinished, { mode: 0o755 });
    await begin(unfinished);
    await rename(unfinished, content);
  }

  /** For one more cache that the project uses. @throws BerthError `quota_exceeded` */
  async #makeRoom(projectId: string, name: string): Promise<void> {
    const { projectBytes, projectCaches, projectInUse } = this.#limits;
    const inUse = [...this.#users.keys()].filter((each) => each.startsWith(`${projectId}/`)).length;
    if (inUse > projectInUse) throw inUseAlready(`are ${String(projectInUse)}, which is as many as it may use at once`);
    await mkdir(`${this.#dir}/${projectId}`, { recursive: true, mode: 0o700 });
    const bytes = await this.#tidyProject(projectId, existsSync(this.#image(name)) ? projectCaches : projectCaches - 1);
    if (bytes > projectBytes) throw inUseAlready(`hold ${String(bytes)} bytes, more than ${String(projectBytes)}`);
  }

  async #remove(name: string): Promise<boolean> {
    return this.#ifFree(name, async () => {
      await this.#unmount(name);
      await rm(this.#image(name), { force: true });
    });
  }

  async #unmount(name: string): Promise<void> {
    const place = this.#place(name);
    this.#ready.delete(name);
    if (!this.#mounted.has(place)) return;
    await this.#disks.unmount(place);
    this.#mounted.delete(place);
    await rmdir(place);
  }

  /** Does it unless somebody uses the cache: whether it was done. */
  async #ifFree(name: string, work: () => Promise<void>): Promise<boolean> {
    const release = this.#lock(name).takeNow();
    if (release === null) return false;
    try {
      await work();
      return true;
    } finally {
      release();
    }
  }

  #image(name: string): string {
    return `${this.#dir}/${name}.img`;
  }

  #place(name: string): string {
    return `${this.#mounts}/${name.replace("/", "-")}`;
  }
}

function inUseAlready(what: string): BerthError {
  return new BerthError("quota_exceeded", `The caches that the project's builds use on this host now ${what}.`);
}

/** A mount of it that just ended takes its loop device with it a moment later. */
async function detached(image: string): Promise<void> {
  for (let attempt = 0; attempt < 100; attempt++) {
    if (!listLoops().some(({ file }) => file === image)) return;
    await sleep(20);
  }
}
