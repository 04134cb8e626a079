import { setImmediate } from "node:timers/promises";

/** So long synchronous work goes on before other work of the process gets its turn, in milliseconds. */
const workMs = 4;

/**
 * For many synchronous calls that are short each (a call on a local file takes 5 to 20 µs, by the thread pool 70 and more):
 * asked before each of them, it lets other work go first when they have gone on for some milliseconds.
 */
export class Pauses {
  #since = performance.now();

  async take(): Promise<void> {
    if (performance.now() - this.#since < workMs) return;
    await setImmediate();
    this.#since = performance.now();
  }
}
