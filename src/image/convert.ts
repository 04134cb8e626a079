import { createHash } from "node:crypto";
import { ErofsWriter } from "./erofs/writer.ts";
import { FileSink } from "./file-sink.ts";
import type { ByteString } from "./layer-entry.ts";
import { type LayerLimits, tooLarge } from "./layer-limits.ts";
import type { LayerNode } from "./layer-node.ts";
import { LayerTree } from "./layer-tree.ts";
import { readTar } from "./tar-read.ts";

export interface Converted {
  /** Digest of the plain tar. */
  diffId: string;
  imageBytes: number;
  /** Paths of directories that the layer uses and does not describe, not more than `maxImplicit`. */
  implicit: ByteString[];
  /** Whether nothing of the layers below is to show. Overlayfs has no such mark for a whole layer. */
  opaqueRoot: boolean;
}

/** Directories beyond these, which only a layer made for it has, get default attributes. */
const maxImplicit = 10_000;

/**
 * Converts a plain tar to an EROFS image at `path` (a new file), streaming. The file is not durable yet when this returns;
 * after an error it is the caller's to delete.
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
      if (node !== null && entry.size > 0) await image.addFile(node, entry.content);
    }
    const diffId = hash.digest();
    const imageBytes = await image.finish(tree.root, diffId);
    await sink.writeOut();
    return {
      diffId: `sha256:${diffId.toString("hex")}`,
      imageBytes,
      implicit: implicitDirectories(tree.root),
      opaqueRoot: tree.root.opaque,
    };
  } finally {
    await sink.close();
  }
}

function implicitDirectories(root: LayerNode): ByteString[] {
  const implicit: ByteString[] = [];
  const directories: { path: ByteString; node: LayerNode }[] = [{ path: "", node: root }];
  // The array grows while it is walked.
  for (const { path, node } of directories) {
    for (const [name, child] of node.children ?? []) {
      if (child.type !== "directory") continue;
      const at = path === "" ? name : `${path}/${name}`;
      directories.push({ path: at, node: child });
      if (child.implicit && implicit.length < maxImplicit) implicit.push(at);
    }
  }
  return implicit;
}
