import { Beside } from "./beside.ts";

/**
 * Sandboxes of a build whose programs have ended. Taking one away takes as long as a short step and would compete with the
 * steps that follow: it happens beside the build's next program, or after the build.
 */
export class Leaving {
  readonly #beside = new Beside();
  #turn = Promise.withResolvers<void>();
  #going = Promise.resolve();

  /** Adds one. `removal` is to go on once what this returns has resolved. */
  add(removal: Promise<unknown>): Promise<void> {
    this.#beside.add(removal);
    return this.#turn.promise;
  }

  /** Has all of them taken away. Returns when those are gone that an earlier call was for: no more than that gather. */
  begin(): Promise<void> {
    const earlier = this.#going;
    this.#going = this.settled();
    return earlier;
  }

  /** Has all of them taken away, and returns when they are, or could not be. */
  async settled(): Promise<void> {
    this.#turn.resolve();
    this.#turn = Promise.withResolvers();
    await this.#beside.settled();
  }

  /** The same, of the last ones. @throws the first error of any */
  async end(): Promise<void> {
    await this.settled();
    await this.#beside.end();
  }
}
