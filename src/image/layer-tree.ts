import { BerthError } from "../core/errors.ts";
import { type ByteString, type LayerEntry, showBytes } from "./layer-entry.ts";
import { type LayerLimits, tooLarge } from "./layer-limits.ts";
import { LayerNode, type NodeType } from "./layer-node.ts";
import { keptXattrs } from "./layer-xattrs.ts";

const whiteoutPrefix = ".wh.";
const opaqueMarker = ".wh..wh..opq";
/** Ids that a container's user namespace has; the last but one is `nobody`, as by convention. */
const idCount = 65_536;
const nobody = 65_534;
/** As the kernel's own (path_resolution(7)). */
const maxSymlinks = 40;

/**
 * A layer's entries as a tree of inodes, with every rule of OCI's layer.md applied. It exists in memory only: a path
 * chosen by a tenant is never looked up on the host. Where rules leave it open it does what GNU tar and Docker do: a later
 * entry replaces an earlier one of the same name, except that directories merge; symlinks on the way to an entry are
 * followed inside the layer, the last component never is.
 */
export class LayerTree {
  readonly root = new LayerNode("directory");
  readonly #limits: LayerLimits;
  #entries = 0;
  #metadataBytes = 0;

  constructor(limits: LayerLimits) {
    this.#limits = limits;
    this.root.implicit = true;
  }

  /**
   * Places an entry. Returns its node when that is a file whose content the caller must place, otherwise null.
   * @throws BerthError `invalid_image` for paths that leave the root and links to nothing, `layer_too_large` for limits.
   */
  add(entry: LayerEntry): LayerNode | null {
    if (++this.#entries > this.#limits.entries) throw tooLarge(`more than ${String(this.#limits.entries)} entries`);
    this.#count(entry.path.length + entry.target.length);
    const path = this.#components(entry.path);
    const name = path.pop();
    if (name === undefined) {
      // The root itself can't be replaced, only described.
      if (entry.type === "directory") this.#describe(this.root, entry);
      return null;
    }
    if (path.some((part) => part.startsWith(whiteoutPrefix))) {
      throw invalidEntry(entry.path, "it lies within a whiteout");
    }
    if (entry.type === "device") return null;
    const parent = this.#directory(path, entry.path);
    if (name.startsWith(whiteoutPrefix)) {
      this.#whiteOut(parent, name, entry.path);
      return null;
    }
    return this.#place(parent, name, entry);
  }

  #place(parent: LayerNode, name: ByteString, entry: LayerEntry): LayerNode | null {
    const existing = parent.children?.get(name);
    if (entry.type === "hardlink") {
      const target = this.#find(entry.target, entry.path);
      if (target === existing) return null;
      this.#attach(parent, name, target);
      return null;
    }
    if (entry.type === "directory" && existing?.type === "directory") {
      this.#describe(existing, entry);
      return null;
    }
    const node = new LayerNode(entry.type as NodeType);
    this.#describe(node, entry);
    // A whiteout and a new directory of one name: the new one, with nothing of the lower one showing through.
    if (node.type === "directory" && existing?.type === "whiteout") node.opaque = true;
    if (node.type === "symlink") {
      if (entry.target.length === 0 || entry.target.length > 4095 || entry.target.includes("\0")) {
        throw invalidEntry(entry.path, "the target of a symlink must have 1 to 4095 bytes");
      }
      node.target = entry.target;
    }
    node.size = entry.size;
    this.#attach(parent, name, node);
    return node.type === "file" ? node : null;
  }

  /** Whiteouts apply only to the layers below: what this layer itself has under the name stays (layer.md). */
  #whiteOut(parent: LayerNode, name: ByteString, path: ByteString): void {
    if (name === opaqueMarker) {
      parent.opaque = true;
      return;
    }
    // Other names with the doubled prefix are AUFS's bookkeeping.
    if (name.startsWith(whiteoutPrefix + whiteoutPrefix)) return;
    const hidden = name.slice(whiteoutPrefix.length);
    if (hidden === "" || hidden === "." || hidden === "..") throw invalidEntry(path, "it is a whiteout of no name");
    const existing = parent.children?.get(hidden);
    if (existing === undefined) {
      this.#attach(parent, hidden, new LayerNode("whiteout"));
    } else if (existing.type === "directory") {
      existing.opaque = true;
    }
  }

  #attach(parent: LayerNode, name: ByteString, node: LayerNode): void {
    const existing = parent.children?.get(name);
    if (existing !== undefined) existing.links--;
    node.links++;
    parent.children?.set(name, node);
  }

  #describe(node: LayerNode, entry: LayerEntry): void {
    node.implicit = false;
    node.mode = entry.mode;
    node.uid = this.#id(entry.uid);
    node.gid = this.#id(entry.gid);
    node.mtime = entry.mtime;
    node.xattrs = keptXattrs(entry.xattrs);
    let bytes = 0;
    for (const [key, value] of node.xattrs) bytes += key.length + value.length;
    if (bytes > this.#limits.xattrBytes) throw tooLarge(`an entry with ${String(bytes)} bytes of extended attributes`);
    this.#count(bytes);
  }

  /** Ids outside the container's range could be neither shown nor deleted inside: they become `nobody`. */
  #id(id: number): number {
    return id >= 0 && id < idCount ? id : nobody;
  }

  #count(bytes: number): void {
    this.#metadataBytes += bytes;
    if (this.#metadataBytes > this.#limits.metadataBytes) throw tooLarge("too many bytes of names and attributes");
  }

  /** The components of a path without empty ones and `.`; `..` is refused. */
  #components(path: ByteString): ByteString[] {
    const parts = path.split("/").filter((part) => part !== "" && part !== ".");
    if (parts.length > this.#limits.depth)
      throw tooLarge(`a path of more than ${String(this.#limits.depth)} components`);
    for (const part of parts) {
      if (part === "..") throw invalidEntry(path, "it has a `..`");
      if (part.length > 255) throw invalidEntry(path, "it has a component of more than 255 bytes");
      if (/[\0\u0100-\uffff]/.test(part)) throw invalidEntry(path, "it has a NUL");
    }
    return parts;
  }

  /** The directory at these components: symlinks followed within the layer, what is missing made. */
  #directory(path: readonly ByteString[], of: ByteString): LayerNode {
    return this.#walk(path, of, (parent, name) => {
      if (++this.#entries > this.#limits.entries) throw tooLarge(`more than ${String(this.#limits.entries)} entries`);
      const made = new LayerNode("directory");
      made.implicit = true;
      made.opaque = parent.children?.get(name)?.type === "whiteout";
      this.#attach(parent, name, made);
      return made;
    });
  }

  /** The node that a hard link means. */
  #find(target: ByteString, of: ByteString): LayerNode {
    const path = this.#components(target);
    const name = path.pop();
    const missing = (): never => {
      throw invalidEntry(of, `it is a hard link to ${showBytes(target)}, which the layer does not have`);
    };
    const node = name === undefined ? undefined : this.#walk(path, of, missing).children?.get(name);
    if (node === undefined || node.type === "whiteout") return missing();
    if (node.type === "directory") throw invalidEntry(of, "it is a hard link to a directory");
    return node;
  }

  #walk(
    path: readonly ByteString[],
    of: ByteString,
    onMissing: (parent: LayerNode, name: ByteString) => LayerNode,
  ): LayerNode {
    let symlinks = 0;
    // Nodes from the root to where we are, for the `..` in symlinks' targets, which never leave the root.
    const trail = [this.root];
    const rest = path.slice().reverse();
    for (let name = rest.pop(); name !== undefined; name = rest.pop()) {
      if (name === "" || name === ".") continue;
      if (name === "..") {
        if (trail.length > 1) trail.pop();
        continue;
      }
      const at = trail[trail.length - 1] ?? this.root;
      let next = at.children?.get(name);
      if (next === undefined || next.type === "whiteout") next = onMissing(at, name);
      if (next.type === "symlink") {
        if (++symlinks > maxSymlinks) throw invalidEntry(of, "it lies behind too many symlinks");
        // Counted like a path of the tar, so that following long targets for every entry costs no more time than those.
        this.#count(next.target.length);
        if (next.target.startsWith("/")) trail.length = 1;
        rest.push(...next.target.split("/").reverse());
      } else if (next.type === "directory") {
        trail.push(next);
        if (trail.length > this.#limits.depth)
          throw tooLarge(`a path of more than ${String(this.#limits.depth)} components`);
      } else {
        throw invalidEntry(of, `its parent ${showBytes(name)} is not a directory`);
      }
    }
    return trail[trail.length - 1] ?? this.root;
  }
}

function invalidEntry(path: ByteString, why: string): BerthError {
  return new BerthError("invalid_image", `The layer's entry ${showBytes(path)} is refused: ${why}.`);
}
