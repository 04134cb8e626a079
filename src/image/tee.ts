/** One result of the source and, once somebody asked for it, the next. */
interface Link<T> {
  result: Promise<IteratorResult<T>>;
  next: Link<T> | null;
}

/** Chunks that one branch may be ahead of the other: with 256 KiB chunks 2 MiB are held at most. */
const maxLead = 8;

/**
 * Two readers of one stream, each seeing every chunk. The faster waits for the slower. A reader that stops early leaves
 * the other to go on alone; when both have stopped, the source is told.
 */
export class Tee<T> {
  readonly branches: readonly [AsyncIterable<T>, AsyncIterable<T>];
  readonly #source: AsyncIterator<T>;
  /** Until both branches have begun: who holds a link holds all that come after it. */
  #first: Link<T> | null = null;
  readonly #taken: [number, number] = [0, 0];
  readonly #open: [boolean, boolean] = [true, true];
  #stopped: { error: unknown } | null = null;
  #wake: (() => void) | null = null;

  constructor(source: AsyncIterable<T>) {
    this.#source = source[Symbol.asyncIterator]();
    this.branches = [this.#branch(0, 1), this.#branch(1, 0)];
  }

  /** Ends both branches with this error at their next read, also one that waits for the other. */
  async stop(error: unknown): Promise<void> {
    this.#stopped ??= { error };
    this.#moved();
    await this.#source.return?.();
  }

  #branch(own: 0 | 1, other: 0 | 1): AsyncIterableIterator<T> {
    let link: Link<T> | null = null;
    const close = async (): Promise<IteratorResult<T>> => {
      this.#open[own] = false;
      this.#moved();
      if (!this.#open[other]) await this.#source.return?.();
      return { done: true, value: undefined };
    };
    return {
      next: async () => {
        while (this.#open[other] && this.#stopped === null && this.#taken[own] - this.#taken[other] >= maxLead) {
          await new Promise<void>((resolve) => {
            this.#wake = resolve;
          });
        }
        if (this.#stopped !== null) throw this.#stopped.error;
        link = link === null ? (this.#first ??= this.#read()) : (link.next ??= this.#read());
        const result = await link.result;
        if (result.done === true) return close();
        this.#taken[own]++;
        if (this.#taken[other] > 0 || !this.#open[other]) this.#first = null;
        this.#moved();
        return result;
      },
      return: close,
      [Symbol.asyncIterator]() {
        return this;
      },
    };
  }

  #read(): Link<T> {
    const result = this.#source.next();
    // Each branch that gets to it sees the error; perhaps none does.
    result.catch(() => undefined);
    return { result, next: null };
  }

  #moved(): void {
    this.#wake?.();
    this.#wake = null;
  }
}
