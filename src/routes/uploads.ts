import { BerthError } from "../core/errors.ts";

/** Bounds how many uploads of one project the API stores at the same time. */
export class Uploads {
  readonly #limit: number;
  readonly #running = new Map<string, number>();

  constructor(limit: number) {
    this.#limit = limit;
  }

  /** Stores one. @throws BerthError `too_many_requests` when the project has too many under way; nothing was read then. */
  async store<T>(projectId: string, work: () => Promise<T>): Promise<T> {
    const before = this.#running.get(projectId) ?? 0;
    if (before >= this.#limit) {
      throw new BerthError("too_many_requests", `The project has ${String(before)} uploads under way.`);
    }
    this.#running.set(projectId, before + 1);
    try {
      return await work();
    } finally {
      const left = (this.#running.get(projectId) ?? 1) - 1;
      if (left === 0) this.#running.delete(projectId);
      else this.#running.set(projectId, left);
    }
  }
}
