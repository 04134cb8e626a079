/** Layers that are transferred at the same time. */
const parallel = 3;

/**
 * Runs the task for each item, three at a time. The first failure aborts the others' signal; it is thrown when they have
 * ended too, so that nothing goes on behind the caller's back.
 */
export async function inLanes<T>(
  items: Iterable<T>,
  outer: AbortSignal,
  task: (item: T, signal: AbortSignal) => Promise<void>,
): Promise<void> {
  const failure = new AbortController();
  const signal = AbortSignal.any([outer, failure.signal]);
  const queue = items[Symbol.iterator]();
  const lane = async (): Promise<void> => {
    for (let next = queue.next(); next.done !== true; next = queue.next()) {
      signal.throwIfAborted();
      await task(next.value, signal);
    }
  };
  await Promise.allSettled(
    Array.from({ length: parallel }, () => lane().catch((error: unknown) => failure.abort(error))),
  );
  outer.throwIfAborted();
  if (failure.signal.aborted) throw failure.signal.reason;
}
