import { tokenHash } from "../core/keys.ts";
import type { Sql } from "../db/scope.ts";
import { authenticate, type Principal } from "../db/tokens.ts";
import { topics, type Wakeups } from "../db/wakeups.ts";

/** How long a token that was looked up is believed without asking again. */
const believedMs = 2_000;
const maxEntries = 10_000;

interface Entry {
  principal: Principal;
  until: number;
  unsubscribe: () => void;
}

/**
 * Looks tokens up, and for a moment remembers those that are valid: under load the look-up would cost as much as the
 * request. A revocation reaches every process by notification; if that is lost, the moment passes. Tokens are known by
 * their hash only.
 */
export class TokenCache {
  readonly #sql: Sql;
  readonly #wakeups: Wakeups;
  readonly #known = new Map<string, Entry>();

  constructor(sql: Sql, wakeups: Wakeups) {
    this.#sql = sql;
    this.#wakeups = wakeups;
  }

  /** Who holds the token; null when nobody does. */
  async find(token: string): Promise<Principal | null> {
    const hash = tokenHash(token);
    const key = hash.toString("base64");
    const known = this.#known.get(key);
    if (known !== undefined && known.until > performance.now()) return known.principal;
    this.#drop(key);
    const principal = await authenticate(this.#sql, hash);
    if (principal !== null && !this.#known.has(key)) {
      if (this.#known.size >= maxEntries) for (const old of this.#known.keys()) this.#drop(old);
      const unsubscribe = this.#wakeups.subscribe(topics.resource(principal.tokenId), () => this.#drop(key));
      this.#known.set(key, { principal, until: performance.now() + believedMs, unsubscribe });
    }
    return principal;
  }

  /** Whether the token has not been revoked since; asks the database. */
  async stillValid(principal: Principal): Promise<boolean> {
    return (await authenticate(this.#sql, principal.tokenHash)) !== null;
  }

  /** Asks again at the next use of the token. */
  forget(tokenId: string): void {
    for (const [key, { principal }] of this.#known) if (principal.tokenId === tokenId) this.#drop(key);
  }

  #drop(key: string): void {
    this.#known.get(key)?.unsubscribe();
    this.#known.delete(key);
  }
}
