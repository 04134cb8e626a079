import { type InboxContainer, readContainer, readInbox } from "../db/inbox.ts";
import type { Drive } from "./container-start.ts";
import { ContainerSteps } from "./container-steps.ts";
import { Inbox } from "./inbox.ts";
import type { Services } from "./services.ts";

/**
 * Drives each container of this host to what is wanted. `wake(id)` is the only way in: from the inbox, from exits, from
 * timers and from adoption at start. One drive per container at a time; a wake during a drive makes it look once more.
 */
export class Converger {
  readonly #services: Services;
  readonly #steps: ContainerSteps;
  readonly #drives = new Map<string, Drive>();
  /** Containers that were woken during their drive. */
  readonly #again = new Set<string>();
  readonly #timers = new Map<string, NodeJS.Timeout>();
  readonly #inbox: Inbox<InboxContainer>;
  #closed = false;

  constructor(services: Services, { rebooted }: { rebooted: boolean }) {
    const { connection, host } = services;
    this.#services = services;
    this.#steps = new ContainerSteps(services, {
      rebooted,
      look: (id, inMs) => {
        this.#wakeIn(id, inMs);
      },
    });
    this.#inbox = new Inbox(
      () => readInbox(connection.sql, host.id),
      (id, fresh) => this.wake(id, fresh),
    );
  }

  /** Wakes every container of which something new is wanted. */
  readInbox(): Promise<void> {
    return this.#inbox.read();
  }

  /** Looks at a container soon. `fresh`: its row, when the caller has just read it. */
  wake(id: string, fresh: InboxContainer | null = null): void {
    if (this.#closed) return;
    const drive = this.#drives.get(id);
    if (drive === undefined) {
      this.#drives.set(id, { abort: new AbortController() });
      void this.#drive(id, fresh);
    } else {
      this.#again.add(id);
      if (fresh !== null && fresh.wanted !== "running") drive.abort.abort();
    }
  }

  /** Takes no further steps; containers stay as they are. */
  close(): void {
    this.#closed = true;
    this.#steps.close();
    for (const timer of this.#timers.values()) clearTimeout(timer);
    for (const drive of this.#drives.values()) drive.abort.abort();
  }

  #wakeIn(id: string, milliseconds: number): void {
    clearTimeout(this.#timers.get(id));
    this.#timers.set(
      id,
      setTimeout(() => {
        this.#timers.delete(id);
        this.wake(id);
      }, milliseconds),
    );
  }

  async #drive(id: string, fresh: InboxContainer | null): Promise<void> {
    const { log, connection, host } = this.#services;
    const drive = this.#drives.get(id);
    if (drive === undefined) return;
    try {
      for (let row = fresh; !this.#closed; row = null) {
        this.#again.delete(id);
        const container = row ?? (await readContainer(connection.sql, host.id, id));
        const next = container === null ? "done" : await this.#steps.take(container, drive);
        if (next === "more") continue;
        if (next !== "done") this.#wakeIn(id, next.lookInMs);
        if (!this.#again.has(id)) break;
      }
    } catch (error) {
      log.error({ err: error, container: id }, "converging failed; trying again");
      this.#wakeIn(id, 1000);
    } finally {
      this.#drives.delete(id);
      this.#inbox.written(id);
      if (this.#again.delete(id)) this.wake(id);
    }
  }
}
