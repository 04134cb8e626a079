/** What the steps of a build leave to go on beside the next ones. All of it is to end, well or not, before the build does. */
export class Beside {
  readonly #failure = new AbortController();
  readonly #running = new Set<Promise<void>>();

  /** Aborts when something that was left fails; its error is the reason. */
  get failed(): AbortSignal {
    return this.#failure.signal;
  }

  add(work: Promise<unknown>): void {
    const ended: Promise<void> = work
      .then(
        () => undefined,
        (error: unknown) => this.#failure.abort(error),
      )
      .finally(() => this.#running.delete(ended));
    this.#running.add(ended);
  }

  /** Returns when what goes on now has ended, well or not. */
  async settled(): Promise<void> {
    await Promise.all(this.#running);
  }

  /** Returns when nothing goes on any more. @throws the first error of what did */
  async end(): Promise<void> {
    while (this.#running.size > 0) await this.settled();
    this.#failure.signal.throwIfAborted();
  }
}
