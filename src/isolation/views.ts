import { randomUUID } from "node:crypto";
import { mkdir, readdir, rmdir } from "node:fs/promises";
import type { Mounts } from "./apply/mounts.ts";

/** Layers that are mounted read-only as one tree for the worker's own eyes: what a container's changes are held against. */
export class Views {
  readonly #mounts: Mounts;
  readonly #dir: string;

  /** `dir` is on a filesystem that only this worker uses. */
  constructor(mounts: Mounts, dir: string) {
    this.#mounts = mounts;
    this.#dir = dir;
  }

  /**
   * Mounts the layers (paths of EROFS files, lowest first) for as long as `use` runs on the tree's path. Owners are as
   * the image says; nothing in it can change.
   */
  async with<T>(layers: readonly string[], use: (path: string) => Promise<T>): Promise<T> {
    const path = `${this.#dir}/${randomUUID()}`;
    await mkdir(path, { recursive: true, mode: 0o700 });
    try {
      await this.#mounts.mountView(layers, path);
      return await use(path);
    } finally {
      await this.#take(path);
    }
  }

  /** Takes away what a worker that was killed has left. */
  async clear(): Promise<void> {
    await mkdir(this.#dir, { recursive: true, mode: 0o700 });
    for (const name of await readdir(this.#dir)) await this.#take(`${this.#dir}/${name}`);
  }

  async #take(path: string): Promise<void> {
    await this.#mounts.unmountRootfs(path);
    await rmdir(path);
  }
}
