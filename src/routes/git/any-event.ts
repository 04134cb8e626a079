import type { EventEmitter } from "node:events";

/** Resolves at the first of these events. */
export async function anyEvent(emitter: EventEmitter, ...names: readonly string[]): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<undefined>();
  const done = () => resolve(undefined);
  for (const name of names) emitter.once(name, done);
  await promise;
  for (const name of names) emitter.removeListener(name, done);
}
