import type postgres from "postgres";

/** The one channel; its payload is a topic. */
export const channel = "berth";

/**
 * Topics: a host's inbox, its end, the job queue, running jobs that are to end, and one resource each for those who wait
 * on it.
 */
export const topics = {
  host: (id: string) => `host:${id}`,
  forgotten: (hostId: string) => `forgotten:${hostId}`,
  jobs: "jobs",
  cancels: "cancels",
  events: (projectId: string) => `events:${projectId}`,
  resource: (id: string) => id,
};

/**
 * A process's one LISTEN connection. A wake-up can be lost, so whoever waits also polls; after a
 * reconnect every subscriber is woken once.
 */
export class Wakeups {
  readonly #subscribers = new Map<string, Set<() => void>>();
  #unlisten: (() => Promise<void>) | null = null;

  static async open(client: postgres.Sql): Promise<Wakeups> {
    const wakeups = new Wakeups();
    const listening = await client.listen(
      channel,
      (topic) => {
        for (const wake of wakeups.#subscribers.get(topic) ?? []) wake();
      },
      () => {
        for (const set of wakeups.#subscribers.values()) for (const wake of set) wake();
      },
    );
    wakeups.#unlisten = () => listening.unlisten();
    return wakeups;
  }

  /** Calls `wake` for each notification of the topic until the returned function is called. */
  subscribe(topic: string, wake: () => void): () => void {
    const set = this.#subscribers.get(topic) ?? new Set();
    this.#subscribers.set(topic, set.add(wake));
    return () => {
      set.delete(wake);
      if (set.size === 0 && this.#subscribers.get(topic) === set) this.#subscribers.delete(topic);
    };
  }

  async close(): Promise<void> {
    await this.#unlisten?.();
  }
}

/** Remembers that something changed until somebody has waited for it. */
export class Changes {
  #changed = false;
  #waiter: (() => void) | null = null;

  wake(): void {
    this.#changed = true;
    this.#waiter?.();
  }

  /** Returns at the next change, or one that nobody waited for yet; or after `ms`; or when `signal` fires. */
  async next(ms: number, signal: AbortSignal): Promise<void> {
    if (!this.#changed && !signal.aborted) {
      const { promise, resolve } = Promise.withResolvers<undefined>();
      const done = () => resolve(undefined);
      const timer = setTimeout(done, ms);
      signal.addEventListener("abort", done, { once: true });
      this.#waiter = done;
      await promise;
      this.#waiter = null;
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
    }
    this.#changed = false;
  }
}
