import type { FileSink } from "../file-sink.ts";
import type { LayerNode } from "../layer-node.ts";
import { directoryNames, encodeDirectory } from "./directory.ts";
import { blockSize, encodeInode, encodeSuperblock, nidUnit, superblockOffset } from "./format.ts";
import { type Layout, layOut } from "./layout.ts";
import { encodeXattrs, xattrCount } from "./xattr.ts";

/**
 * Writes an EROFS image front to back: block 0 is left for the superblock, files' content follows as it streams in, then
 * the directories that need blocks of their own, then all inodes. Only the tree is held in memory. The same tree and
 * content give the same image.
 */
export class ErofsWriter {
  readonly #sink: FileSink;

  private constructor(sink: FileSink) {
    this.#sink = sink;
  }

  static async start(sink: FileSink): Promise<ErofsWriter> {
    const writer = new ErofsWriter(sink);
    await sink.write(Buffer.alloc(blockSize));
    return writer;
  }

  /** Stores a file's content in whole blocks. Returns the first block and the bytes. */
  async writeFile(content: AsyncIterable<Uint8Array> | Iterable<Uint8Array>): Promise<{ block: number; size: number }> {
    const start = this.#sink.position;
    for await (const chunk of content) await this.#sink.write(chunk);
    const size = this.#sink.position - start;
    await this.#sink.pad(blockSize);
    return { block: size === 0 ? 0 : start / blockSize, size };
  }

  /** Writes the tree and the superblock. Returns the image's bytes; the sink is the caller's to close. */
  async finish(root: LayerNode, uuid: Uint8Array): Promise<number> {
    const layout = await layOut(root, this.#sink.position / blockSize);
    for (const node of layout.apart) {
      await this.#sink.write(payload(node));
      await this.#sink.pad(blockSize);
    }
    const metadataBlock = this.#sink.position / blockSize;
    await this.#writeMetadata(layout, metadataBlock * blockSize);
    const blocks = this.#sink.position / blockSize;
    const superblock = { rootNid: root.nid, inodes: layout.inodes.length, blocks, metadataBlock, uuid };
    await this.#sink.writeAt(encodeSuperblock(superblock), superblockOffset);
    return blocks * blockSize;
  }

  async #writeMetadata(layout: Layout, start: number): Promise<void> {
    const apart = new Set(layout.apart);
    for (const node of layout.inodes) {
      await this.#sink.padTo(start + node.nid * nidUnit);
      const xattrs = encodeXattrs(node);
      const behind = !apart.has(node) && (node.type === "directory" || node.type === "symlink");
      const place = { layout: behind ? "inline" : "plain", block: node.block, size: node.size } as const;
      await this.#sink.write(encodeInode(node, place, xattrCount(xattrs.length)));
      if (xattrs.length > 0) await this.#sink.write(xattrs);
      if (behind) await this.#sink.write(payload(node));
    }
    await this.#sink.padTo(start + layout.metadataBytes);
    await this.#sink.pad(blockSize);
  }
}

function payload(node: LayerNode): Buffer {
  return node.type === "directory" ? encodeDirectory(node, directoryNames(node)) : Buffer.from(node.target, "latin1");
}
