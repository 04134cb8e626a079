import { createHash } from "node:crypto";
import { ErofsWriter } from "./erofs/writer.ts";
import { FileSink } from "./file-sink.ts";
import { type LayerLimits, tooLarge } from "./layer-limits.ts";
import type { LayerNode } from "./layer-node.ts";
import { LayerTree } from "./layer-tree.ts";
import { readTar } from "./tar-read.ts";

export interface Converted {
  /** Digest of the plain tar. */
  diffId: string;
  tarBytes: number;
  imageBytes: number;
  /** The tree that was written. */
  root: LayerNode;
}

/**
 * Converts a plain tar to an EROFS image at `path` (a new file), streaming. The file is durable when this returns; after an
 * error it is the caller's to delete.
 * @throws BerthError `invalid_image`, `layer_too_large`, `disk_full`.
 */
export async function convertLayer(
  tar: AsyncIterable<Uint8Array>,
  path: string,
  limits: LayerLimits,
): Promise<Converted> {
  const sink = await FileSink.create(path, 0o600);
  try {
    const hash = createHash("sha256");
    let tarBytes = 0;
    async function* counted(): AsyncGenerator<Uint8Array, void> {
      for await (const chunk of tar) {
        tarBytes += chunk.length;
        if (tarBytes > limits.tarBytes) throw tooLarge(`more than ${String(limits.tarBytes)} bytes`);
        hash.update(chunk);
        yield chunk;
      }
    }
    const tree = new LayerTree(limits);
    const image = await ErofsWriter.start(sink);
    for await (const entry of readTar(counted())) {
      const node = tree.add(entry);
      if (node !== null && entry.size > 0) node.block = (await image.writeFile(entry.content)).block;
    }
    const diffId = hash.digest();
    const imageBytes = await image.finish(tree.root, diffId);
    await sink.sync();
    return { diffId: `sha256:${diffId.toString("hex")}`, tarBytes, imageBytes, root: tree.root };
  } finally {
    await sink.close();
  }
}
