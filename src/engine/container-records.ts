import type postgres from "postgres";
import { BerthError } from "../core/errors.ts";
import type { Health } from "../core/health.ts";
import {
  eraseContainer,
  type Fence,
  type InboxContainer,
  type SeenPatch,
  writeHealth,
  writePorts,
  writeSeen,
} from "../db/inbox.ts";

/** What a worker writes of its host's containers; nothing once a newer session of the host has taken over. */
export class ContainerRecords {
  readonly #sql: postgres.Sql;
  readonly #fence: Fence;
  readonly #moved: (to: string) => void;

  /** @param moved called with a container whose ports the host may have led to the one that had them before it */
  constructor(sql: postgres.Sql, fence: Fence, moved: (to: string) => void) {
    this.#sql = sql;
    this.#fence = fence;
    this.#moved = moved;
  }

  /**
   * Writes what was seen, with an event when one is named.
   * @throws BerthError `unavailable` when the row is no longer this session's: no step may follow on it.
   */
  async seen(
    container: InboxContainer,
    patch: SeenPatch,
    event?: string,
    data: Record<string, unknown> = {},
  ): Promise<void> {
    const told = event === undefined ? undefined : { type: event, data };
    if (!(await writeSeen(this.#sql, this.#fence, container, patch, told))) throw takenOver();
  }

  /** As `seen`, without waiting for the disk: a crash of the database may undo it until the next `seen`. See writeSeen. */
  async seenSoon(container: InboxContainer, patch: SeenPatch): Promise<void> {
    if (!(await writeSeen(this.#sql, this.#fence, container, patch, undefined, false))) throw takenOver();
  }

  /** Which ports are applied, and which no longer. */
  async ports(container: InboxContainer, change: Parameters<typeof writePorts>[3]): Promise<void> {
    if (Object.values(change).every((list) => list.length === 0)) return;
    for (const to of await writePorts(this.#sql, this.#fence, container, change)) this.#moved(to);
  }

  /** See writeHealth. */
  health(container: { id: string; run: number }, health: Health, why: string | null): Promise<void> {
    return writeHealth(this.#sql, this.#fence, container, health, why);
  }

  /** Deletes the row. */
  async erase(container: InboxContainer): Promise<void> {
    await eraseContainer(this.#sql, this.#fence, container);
  }
}

const takenOver = () => new BerthError("unavailable", "A newer session of this host has taken over.");
