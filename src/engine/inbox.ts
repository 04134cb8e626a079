/**
 * Reads the rows of which something is wanted, one read at a time, and wakes their drivers with them. A row that its
 * driver wrote while the read was under way is out of date: acting on it would stop a run that has just begun, or begin
 * one that has just ended. Such a driver is woken without it, and reads for itself.
 */
export class Inbox<Row extends { id: string }> {
  readonly #fetch: () => Promise<readonly Row[]>;
  readonly #wake: (id: string, fresh: Row | null) => void;
  /** Rows that were written since the read under way began. */
  readonly #written = new Set<string>();
  /** How often a read was asked for: asking during one makes it read once more. */
  #asked = 0;
  #reading = false;

  constructor(fetch: () => Promise<readonly Row[]>, wake: (id: string, fresh: Row | null) => void) {
    this.#fetch = fetch;
    this.#wake = wake;
  }

  /** To be called when a driver has ended, after its last write. */
  written(id: string): void {
    this.#written.add(id);
  }

  /** Reads; when a read is under way, that one goes on to read again. */
  async read(): Promise<void> {
    this.#asked++;
    if (this.#reading) return;
    this.#reading = true;
    try {
      for (let answered = 0; answered !== this.#asked; ) {
        answered = this.#asked;
        this.#written.clear();
        for (const row of await this.#fetch()) this.#wake(row.id, this.#written.has(row.id) ? null : row);
      }
    } finally {
      this.#reading = false;
    }
  }
}
