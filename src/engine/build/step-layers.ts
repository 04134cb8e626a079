import type { LayerForm } from "../../build/keys.ts";
import type { LayerEntry } from "../../image/layer-entry.ts";
import type { LayerStore } from "../../image/layers.ts";

/** What steps need of the layer store. */
export type StepLayers = Pick<LayerStore, "make" | "lowers">;

/**
 * Layers in this form: nothing in them is younger than its epoch (seconds since 1970), so that they don't tell when they were
 * made.
 */
export function formedLayers(layers: StepLayers, { epoch, compression }: LayerForm): StepLayers {
  return {
    make: (entries) => layers.make(epoch === null ? entries : dated(entries, epoch), compression),
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
