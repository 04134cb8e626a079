import type { LayerEntry } from "../../image/layer-entry.ts";
import { smallFile } from "../../image/small-file.ts";

/** The same until the signal aborts, which ends it with the signal's reason. */
export async function* abortable<T>(source: AsyncIterable<T> | Iterable<T>, signal: AbortSignal): AsyncGenerator<T> {
  for await (const one of source) {
    signal.throwIfAborted();
    yield one;
  }
}

/** Entries that end so, as does the content of those that take long: of a layer of gigabytes nothing more is read. */
export async function* abortableEntries(
  entries: AsyncIterable<LayerEntry> | Iterable<LayerEntry>,
  signal: AbortSignal,
): AsyncGenerator<LayerEntry> {
  for await (const entry of entries) {
    signal.throwIfAborted();
    yield entry.size > smallFile ? { ...entry, content: abortable(entry.content, signal) } : entry;
  }
}
