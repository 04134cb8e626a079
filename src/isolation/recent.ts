import { type SandboxTemplate, templateKey } from "./sandbox-spec.ts";

/** As many of the last starts are kept ready once more. Each costs what an idle container does, 1 MB. */
const kept = 4;
/** For so long. A template holds what the container was given, secrets of its environment too. */
const forMs = 600_000;

/** The last starts: what to have ready is each of them once more. */
export class Recent {
  readonly #now: () => number;
  /** Oldest first. */
  #starts: { template: SandboxTemplate; key: string; at: number }[] = [];

  /** @param now milliseconds that only grow */
  constructor(now: () => number = () => performance.now()) {
    this.#now = now;
  }

  add(template: SandboxTemplate): void {
    this.#starts.push({ template, key: templateKey(template), at: this.#now() });
    if (this.#starts.length > kept) this.#starts.shift();
  }

  /** Forgets what can't be made ready. */
  drop(template: SandboxTemplate): void {
    const key = templateKey(template);
    this.#starts = this.#starts.filter((start) => start.key !== key);
  }

  /**
   * What to do about those that are ready: the newest start's template that one is missing of, and those that no start
   * of late asks for. `nextMs`: when to look again, null when nothing is kept.
   */
  compare<Ready extends { key: string }>(
    ready: readonly Ready[],
  ): { missing: SandboxTemplate | null; surplus: ReadonlySet<Ready>; nextMs: number | null } {
    const now = this.#now();
    this.#starts = this.#starts.filter((start) => start.at + forMs > now);
    const surplus = new Set(ready);
    let missing: SandboxTemplate | null = null;
    for (const { key, template } of this.#starts.toReversed()) {
      const one = [...surplus].find((other) => other.key === key);
      if (one === undefined) missing ??= template;
      else surplus.delete(one);
    }
    const oldest = this.#starts[0];
    return { missing, surplus, nextMs: oldest === undefined ? null : oldest.at + forMs - now + 1 };
  }
}
