import type { FileSink } from "../file-sink.ts";
import type { LayerNode } from "../layer-node.ts";
import { directoryNames, encodeDirectory } from "./directory.ts";
import { blockSize, encodeInode, encodeSuperblock, nidUnit, superblockOffset } from "./format.ts";
import { isInline, type Layout, layOut } from "./layout.ts";
import { SmallContents } from "./small-contents.ts";
import { encodeXattrs, xattrCount } from "./xattr.ts";

/**
 * Files of up to so many bytes stand behind their inodes, as long as there are not more bytes of them in all, which are held
 * in memory. A block of 4 KiB for each would be most of the image of a tree like node_modules, and one more read.
 */
const inlined = { file: 1024, all: 16 << 20 };

/** Metadata is written in pieces of about so many bytes. */
const pieceBytes = 64 << 10;

/**
 * Writes an EROFS image front to back: block 0 is left for the superblock, files' content follows as it streams in, then
 * the directories that need blocks of their own, then all inodes. Only the tree and small files are held in memory. The same
 * tree and content give the same image.
 */
export class ErofsWriter {
  readonly #sink: FileSink;
  readonly #small = new SmallContents();

  private constructor(sink: FileSink) {
    this.#sink = sink;
  }

  static async start(sink: FileSink): Promise<ErofsWriter> {
    const writer = new ErofsWriter(sink);
    await sink.write(Buffer.alloc(blockSize));
    return writer;
  }

  /** Takes the content of a file, whose node knows its size: all of it comes, or an error does. */
  async addFile(node: LayerNode, content: AsyncIterable<Uint8Array> | Iterable<Uint8Array>): Promise<void> {
    if (node.size <= inlined.file && this.#small.bytes + node.size <= inlined.all) {
      node.inline = await this.#small.add(content, node.size);
      return;
    }
    node.block = this.#sink.position / blockSize;
    for await (const chunk of content) await this.#sink.write(chunk);
    await this.#sink.pad(blockSize);
  }

  /** Writes the tree and the superblock. Returns the image's bytes; the sink is the caller's to close. */
  async finish(root: LayerNode, uuid: Uint8Array): Promise<number> {
    const layout = await layOut(root, this.#sink.position / blockSize);
    for (const node of layout.apart) {
      await this.#sink.write(this.#payload(node));
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
    let parts: Buffer[] = [];
    let bytes = 0;
    let at = this.#sink.position;
    const add = (part: Buffer): void => {
      parts.push(part);
      bytes += part.length;
      at += part.length;
    };
    const write = async (): Promise<void> => {
      await this.#sink.write(Buffer.concat(parts));
      parts = [];
      bytes = 0;
    };
    for (const node of layout.inodes) {
      const gap = start + node.nid * nidUnit - at;
      if (gap > 0) add(zeros.subarray(0, gap));
      const xattrs = encodeXattrs(node);
      const behind = !apart.has(node) && isInline(node);
      const place = { layout: behind ? "inline" : "plain", block: node.block, size: node.size } as const;
      add(encodeInode(node, place, xattrCount(xattrs.length)));
      if (xattrs.length > 0) add(xattrs);
      if (behind) add(this.#payload(node));
      if (bytes >= pieceBytes) await write();
    }
    await write();
    await this.#sink.padTo(start + layout.metadataBytes);
    await this.#sink.pad(blockSize);
  }

  /** What stands behind a node's inode, or in blocks of its own. */
  #payload(node: LayerNode): Buffer {
    if (node.type === "directory") return encodeDirectory(node, directoryNames(node));
    if (node.inline !== null) return this.#small.at(node.inline, node.size);
    return Buffer.from(node.target, "latin1");
  }
}

/** Inodes lie less than a block apart. */
const zeros = Buffer.alloc(blockSize);
