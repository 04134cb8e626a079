import { BerthError } from "../core/errors.ts";
import type { Principal } from "../db/tokens.ts";
import { topics, type Wakeups } from "../db/wakeups.ts";

/** How often the tokens of open streams are looked up again, in case a revocation's notification was lost. */
const recheckMs = 30_000;

/** The requests that are held open (streams, waits): counted per project, ended when their token is revoked. */
export class OpenStreams {
  readonly #wakeups: Wakeups;
  readonly #isValid: (principal: Principal) => Promise<boolean>;
  readonly #perProject = new Map<string, number>();
  readonly #limit: number;
  readonly #all = new Set<AbortController>();

  constructor(wakeups: Wakeups, limit: number, isValid: (principal: Principal) => Promise<boolean>) {
    this.#wakeups = wakeups;
    this.#limit = limit;
    this.#isValid = isValid;
  }

  get size(): number {
    return this.#all.size;
  }

  /**
   * Counts a request that will be held open. Its signal fires when the token is revoked or the server closes; `close`
   * must be called when the request ends.
   * @throws BerthError `too_many_requests` when the project has too many of them.
   */
  open(principal: Principal, projectId: string): { signal: AbortSignal; close(): void } {
    const count = this.#perProject.get(projectId) ?? 0;
    if (count >= this.#limit) {
      throw new BerthError("too_many_requests", `The project has ${String(count)} requests open that wait or stream.`);
    }
    this.#perProject.set(projectId, count + 1);
    const controller = new AbortController();
    this.#all.add(controller);
    const check = () => {
      this.#isValid(principal).then(
        (valid) => {
          if (!valid) controller.abort();
        },
        () => undefined, // The database is away: the next check tells.
      );
    };
    const unsubscribe = this.#wakeups.subscribe(topics.resource(principal.tokenId), check);
    const timer = setInterval(check, recheckMs).unref();
    let open = true;
    return {
      signal: controller.signal,
      close: () => {
        if (!open) return;
        open = false;
        unsubscribe();
        clearInterval(timer);
        this.#all.delete(controller);
        const left = (this.#perProject.get(projectId) ?? 1) - 1;
        if (left === 0) this.#perProject.delete(projectId);
        else this.#perProject.set(projectId, left);
      },
    };
  }

  /** Ends them all, because the server closes. */
  closeAll(): void {
    for (const controller of this.#all) controller.abort();
  }
}
