import { type EmbeddedOptions, type EmbeddedServer, startEmbedded } from "../db/embedded.ts";

/** The embedded database, started again (after 100 ms, doubling to 10 s) whenever it ends by itself. */
export class Database {
  readonly #options: EmbeddedOptions;
  readonly #say: (line: string) => void;
  #server: EmbeddedServer;
  #stopping = false;

  private constructor(options: EmbeddedOptions, server: EmbeddedServer, say: (line: string) => void) {
    this.#options = options;
    this.#server = server;
    this.#say = say;
    void this.#watch();
  }

  static async start(options: EmbeddedOptions, say: (line: string) => void): Promise<Database> {
    return new Database(options, await startEmbedded(options), say);
  }

  /** The first server had been left running by a supervisor that was killed. */
  get adopted(): boolean {
    return this.#server.adopted;
  }

  async #watch(): Promise<void> {
    let delay = 100;
    for (;;) {
      await this.#server.exited;
      if (this.#isStopping()) return;
      this.#say(`the database ended by itself; it starts again in ${String(delay)} ms`);
      await new Promise((resolve) => setTimeout(resolve, delay));
      // A server started now would outlive its supervisor.
      if (this.#isStopping()) return;
      const next = await startEmbedded(this.#options).catch((error: unknown) => {
        this.#say(error instanceof Error ? error.message : String(error));
        return null;
      });
      delay = next === null ? Math.min(delay * 2, 10_000) : 100;
      if (next !== null) this.#server = next;
    }
  }

  /** A function, as it changes while others wait. */
  #isStopping(): boolean {
    return this.#stopping;
  }

  async stop(): Promise<void> {
    this.#stopping = true;
    await this.#server.stop();
  }
}
