import type { LayerEntry } from "../../image/layer-entry.ts";
import type { LayerStore } from "../../image/layers.ts";

/** What steps need of the layer store. */
export type StepLayers = Pick<LayerStore, "make" | "lowers">;

/** Layers in which nothing is younger than the epoch (seconds since 1970), so that they don't tell when they were made. */
export function datedLayers(layers: StepLayers, epoch: number): StepLayers {
  return {
    make: (entries) => layers.make(dated(entries, epoch)),
    lowers: (those) => layers.lowers(those),
  };
}

async function* dated(
  entries: AsyncIterable<LayerEntry> | Iterable<LayerEntry>,
  epoch: number,
): AsyncGenerator<LayerEntry> {
  for await (const entry of entries) {
    yield entry.mtime.seconds < epoch ? entry : { ...entry, mtime: { seconds: epoch, nanoseconds: 0 } };
  }
}
