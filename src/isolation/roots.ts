/** A container's root filesystem while it is used from outside of the container. */
export interface OpenRoot {
  /** Where it is mounted, without what is mounted over it inside the container (/proc, /dev, /etc/hosts, …). */
  path: string;
  /** First of the 65,536 host ids that are 0 to 65,535 inside. */
  idBase: number;
  /** Aborts when the container is to be taken away; `close` must follow soon. */
  signal: AbortSignal;
  /** To be called when nothing of it is open any more. Idempotent. */
  close(): void;
}

/** The root filesystems in use: one that is, can't be unmounted, and its disk must not be attached a second time. */
export class Roots {
  readonly #uses = new Map<string, Set<{ abort: AbortController; closed: Promise<void> }>>();

  open(id: string, path: string, idBase: number): OpenRoot {
    const abort = new AbortController();
    const { promise: closed, resolve: close } = Promise.withResolvers<void>();
    const use = { abort, closed };
    const uses = this.#uses.get(id) ?? new Set();
    this.#uses.set(id, uses.add(use));
    return {
      path,
      idBase,
      signal: abort.signal,
      close: () => {
        uses.delete(use);
        if (uses.size === 0 && this.#uses.get(id) === uses) this.#uses.delete(id);
        close();
      },
    };
  }

  /** Aborts all uses of a container's root and waits until they are closed. */
  async end(id: string): Promise<void> {
    const uses = [...(this.#uses.get(id) ?? [])];
    for (const { abort } of uses) abort.abort();
    await Promise.all(uses.map(({ closed }) => closed));
  }
}
