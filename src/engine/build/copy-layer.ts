import { applyChmod } from "../../build/chmod.ts";
import { type CopyItem, select } from "../../build/select.ts";
import type { CopyStep } from "../../build/step.ts";
import { resolveIn } from "../../build/tree.ts";
import { BerthError } from "../../core/errors.ts";
import { decompress } from "../../image/compress.ts";
import { type ByteString, type LayerEntry, noXattrs, showBytes, toByteString } from "../../image/layer-entry.ts";
import { resolveOwner } from "./accounts.ts";
import { type Decompress, isArchive, unpack } from "./archive.ts";
import type { CopySource } from "./copy-source.ts";
import { Destination, type Making, parentOf } from "./destination.ts";
import { emptyRoot } from "./empty-root.ts";
import type { FileEntry, FileTree } from "./file-entry.ts";

/**
 * The entries of the layer that a COPY or ADD makes: files chosen out of the sources, put where the destination is in
 * `below`, the root so far. Nothing is written on the way: names from tenants meet only these trees. `plain` decompresses
 * archives.
 * @throws BerthError `invalid_context`, `invalid_user`.
 */
export async function* copyLayer(
  step: CopyStep,
  sources: readonly CopySource[],
  below: FileTree,
  plain: Decompress = decompress,
): AsyncGenerator<LayerEntry> {
  const owner = step.chown === null ? null : await resolveOwner(step.chown, below);
  const root = step.link ? emptyRoot : below;
  const target = await resolveIn(root, toByteString(step.destination));
  if (target.blocked) throw cannotPlace(step.destination, "its path leads through something that is no directory");
  const intoDirectory = step.intoDirectory || target.entry?.type === "directory";
  const how = { excludes: step.excludes.map(toByteString), parents: step.parents, intoDirectory };
  const writer = new Writer(step, target.path, owner, root, plain);
  for (const source of sources) {
    for await (const item of select(source.tree, { ...how, sources: source.patterns })) yield* writer.add(item, source);
  }
  for (const { name, content } of step.inline) yield* writer.inline(toByteString(name), content, intoDirectory);
}

function cannotPlace(destination: string, why: string): BerthError {
  return new BerthError("invalid_context", `Nothing can be copied to ${JSON.stringify(destination)}: ${why}.`);
}

class Writer {
  readonly #step: CopyStep;
  readonly #target: ByteString;
  readonly #owner: { uid: number; gid: number } | null;
  readonly #below: FileTree;
  readonly #plain: Decompress;
  #destination: Destination | null = null;

  constructor(
    step: CopyStep,
    target: ByteString,
    owner: { uid: number; gid: number } | null,
    below: FileTree,
    plain: Decompress,
  ) {
    this.#step = step;
    this.#target = target;
    this.#owner = owner;
    this.#below = below;
    this.#plain = plain;
  }

  async *add(item: CopyItem<FileEntry>, source: CopySource): AsyncGenerator<LayerEntry> {
    const { entry, from, to } = item;
    // Sockets, pipes and devices have no content that could be copied.
    if (entry.type === "other") return;
    const destination = this.#destinationFor(entry);
    const path = this.#path(to);
    if (entry.type === "directory") {
      // Only what is in a source directory is copied, not what it is itself; parents that are kept are, where they are new.
      const given = item.merge && (to === "/" || (await this.#isDirectory(destination, path)));
      if (given) yield* destination.directories(path);
      else yield* destination.described(path, this.#attributes(entry));
      return;
    }
    const read = () => source.tree.read(from, entry);
    if (source.unpack && entry.type === "file" && (await isArchive(read, this.#plain))) {
      const into = this.#step.intoDirectory || to === "/" ? this.#target : parentOf(path);
      yield* destination.directories(into);
      yield* unpack(this.#plain(read()), into, this.#below, destination, this.#owner);
      return;
    }
    yield* this.#file(destination, path, entry, entry.type === "file" ? read() : []);
  }

  async *inline(name: ByteString, content: string, intoDirectory: boolean): AsyncGenerator<LayerEntry> {
    const bytes = Buffer.from(content);
    const mtime = { seconds: 0, nanoseconds: 0 };
    const entry: FileEntry = {
      type: "file",
      mode: 0o644,
      uid: 0,
      gid: 0,
      mtime,
      size: bytes.length,
      target: "",
      xattrs: noXattrs,
    };
    yield* this.#file(this.#destinationFor(entry), this.#path(intoDirectory ? `/${name}` : "/"), entry, [bytes]);
  }

  async *#file(
    destination: Destination,
    path: ByteString,
    entry: FileEntry,
    content: LayerEntry["content"],
  ): AsyncGenerator<LayerEntry> {
    const parent = parentOf(path);
    if (!destination.has(parent)) yield* destination.directories(parent);
    if ((await destination.existing(path))?.type === "directory") {
      throw cannotPlace(this.#step.destination, `${showBytes(path)} is a directory there and would become a file`);
    }
    const { type, size, target } = entry;
    yield {
      path: path.slice(1),
      type: type === "symlink" ? "symlink" : "file",
      size,
      target,
      content,
      ...this.#attributes(entry),
    };
  }

  /** Directories that must be made take the times of what is copied first, so that equal input gives an equal layer. */
  #destinationFor(first: Pick<FileEntry, "mtime" | "uid" | "gid">): Destination {
    const making: Making = { ...(this.#owner ?? { uid: 0, gid: 0 }), mtime: first.mtime };
    this.#destination ??= new Destination(this.#below, making);
    return this.#destination;
  }

  async #isDirectory(destination: Destination, path: ByteString): Promise<boolean> {
    if (path === "/" || destination.has(path)) return true;
    return (await destination.existing(path))?.type === "directory";
  }

  #path(to: ByteString): ByteString {
    if (to === "/") return this.#target;
    return this.#target === "/" ? to : this.#target + to;
  }

  #attributes(entry: FileEntry) {
    const { mode, mtime, xattrs } = entry;
    const { uid, gid } = this.#owner ?? entry;
    const { chmod } = this.#step;
    const changed =
      chmod === null || entry.type === "symlink" ? mode : applyChmod(chmod, mode, entry.type === "directory");
    return { mode: changed, uid, gid, mtime, xattrs };
  }
}
