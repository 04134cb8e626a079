import { randomUUID } from "node:crypto";
import { mkdir, readdir, rmdir } from "node:fs/promises";
import type { Log } from "../log.ts";
import type { Mounts } from "./apply/mounts.ts";

/** So long a view stays after its last use: the steps of a build look at the same layers again, and mounting costs more. */
const lingerMs = 250;

interface View {
  path: string;
  mounted: Promise<void>;
  users: number;
  leaving: NodeJS.Timeout | null;
}

/** Layers that are mounted read-only as one tree for the worker's own eyes: what builds copy from. */
export class Views {
  readonly #mounts: Mounts;
  readonly #dir: string;
  readonly #log: Log;
  /** By their layers. */
  readonly #views = new Map<string, View>();

  /** `dir` is on a filesystem that only this worker uses. */
  constructor(mounts: Mounts, dir: string, log: Log) {
    this.#mounts = mounts;
    this.#dir = dir;
    this.#log = log;
  }

  /**
   * Mounts the layers (paths of EROFS files, lowest first) for as long as `use` runs on the tree's path. Owners are as
   * the image says; nothing in it can change.
   */
  async with<T>(layers: readonly string[], use: (path: string) => Promise<T>): Promise<T> {
    const key = layers.join("\n");
    const view = this.#views.get(key) ?? this.#open(key, layers);
    view.users++;
    if (view.leaving !== null) clearTimeout(view.leaving);
    try {
      await view.mounted;
      return await use(view.path);
    } finally {
      view.users--;
      if (view.users === 0) view.leaving = setTimeout(() => void this.#close(key, view), lingerMs).unref();
    }
  }

  /** Takes away those that nobody uses. */
  async close(): Promise<void> {
    const unused = [...this.#views].filter(([, view]) => view.users === 0);
    await Promise.all(unused.map(([key, view]) => this.#close(key, view)));
  }

  /** Takes away what a worker that was killed has left. */
  async clear(): Promise<void> {
    await mkdir(this.#dir, { recursive: true, mode: 0o700 });
    for (const name of await readdir(this.#dir)) await this.#take(`${this.#dir}/${name}`);
  }

  #open(key: string, layers: readonly string[]): View {
    const path = `${this.#dir}/${randomUUID()}`;
    const mount = async (): Promise<void> => {
      await mkdir(path, { recursive: true, mode: 0o700 });
      await this.#mounts.mountView(layers, path);
    };
    const view: View = { path, mounted: mount(), users: 0, leaving: null };
    // Who asks after that tries again.
    view.mounted.catch(() => this.#views.delete(key));
    this.#views.set(key, view);
    return view;
  }

  async #close(key: string, view: View): Promise<void> {
    if (view.leaving !== null) clearTimeout(view.leaving);
    if (this.#views.get(key) === view) this.#views.delete(key);
    try {
      await this.#take(view.path);
    } catch (error) {
      // The next worker takes it away.
      this.#log.warn({ err: error }, "a view of layers could not be unmounted");
    }
  }

  async #take(path: string): Promise<void> {
    await this.#mounts.unmountRootfs(path);
    await rmdir(path);
  }
}
