import { closeSync, mkdirSync, rmSync, statSync } from "node:fs";
import { basename } from "node:path";
import { hasCode } from "./ffi.ts";
import { attachLoop } from "./loop.ts";
import {
  attachMount,
  cloneMount,
  detachMount,
  MOUNT_ATTR_NODEV,
  MOUNT_ATTR_NOEXEC,
  MOUNT_ATTR_NOSUID,
  MOUNT_ATTR_RDONLY,
  type MountOption,
  mapIds,
  mountLegacy,
  newMount,
  unmountLater,
} from "./mount-api.ts";
import { mountsBelow } from "./mount-table.ts";

/** A container's root filesystem: layers, one over the other, under a writable directory. */
export interface RootfsMount {
  /** Lowest first: EROFS images, or plain directories of ours. */
  layers: readonly string[];
  /** On one filesystem, owned by the container's base id. */
  upper: string;
  work: string;
  target: string;
  /** The container's user namespace: layers show their owners as it maps them. */
  userNamespace: number;
  /**
   * No sync at unmount or by the container (overlayfs `volatile`). After a crash of the host the upper directory may be
   * in any state; after a crash of the worker alone it is not.
   */
  volatile: boolean;
}

/**
 * The mounts of a worker: one of each layer, from which every root filesystem takes an idmapped copy. An overlay keeps
 * what it was made of, so a layer's own mount is only a cache and may be unmounted at any time.
 * Paths may hold neither `:`, `,` nor `\`, which overlayfs gives a meaning.
 */
export class Mounts {
  readonly #dir: string;
  readonly #empty: string;
  /** Where each layer is, or soon will be, by mount point. */
  readonly #mounted: Map<string, Promise<string>>;
  /** false: before 6.13 overlayfs takes its layers as paths only, and before 6.5 in one text. */
  #layersByDescriptor: boolean;

  /** `dir` is on a filesystem that only this worker uses. `layersByDescriptor: false` is for testing the older way. */
  constructor(dir: string, options: { layersByDescriptor?: boolean } = {}) {
    this.#dir = dir;
    this.#empty = `${dir}/empty`;
    this.#layersByDescriptor = options.layersByDescriptor ?? true;
    mkdirSync(this.#empty, { recursive: true, mode: 0o711 });
    this.#mounted = new Map(mountsBelow(dir).map(({ path }) => [path, Promise.resolve(path)]));
  }

  /**
   * Where a layer's files can be read, mounted read-only. Files have the owners that the image says, so this is for the
   * worker's own eyes. Idempotent; 0.1 ms the first time.
   */
  async mountLayer(path: string): Promise<string> {
    if (statSync(path).isDirectory()) return path;
    const target = this.#targetOf(path);
    let mounted = this.#mounted.get(target);
    if (mounted === undefined) {
      mounted = mountImage(path, target);
      this.#mounted.set(target, mounted);
      mounted.catch(() => this.#mounted.delete(target));
    }
    return mounted;
  }

  /** Before a layer's file is deleted. Root filesystems made of it keep it until they end. Idempotent. */
  unmountLayer(path: string): void {
    const target = this.#targetOf(path);
    this.#mounted.delete(target);
    detachIfMounted(target);
    rmSync(target, { recursive: true, force: true });
  }

  /** 0.5 ms with three layers that are mounted already. */
  async mountRootfs(rootfs: RootfsMount): Promise<void> {
    const { upper, work, target, userNamespace, volatile } = rootfs;
    const layers = await this.#places(rootfs.layers.length === 0 ? [this.#empty] : rootfs.layers);
    // The kernel marks the work directory so that a volatile upper is not used again by mistake; we do so knowingly.
    rmSync(`${work}/work/incompat`, { recursive: true, force: true });
    const clones: number[] = [];
    try {
      for (const layer of layers) {
        const clone = cloneMount(layer);
        clones.push(clone);
        mapIds(clone, userNamespace);
      }
      const writable: MountOption[] = [
        ["upperdir", upper],
        ["workdir", work],
      ];
      if (volatile) writable.push(["volatile", true]);
      this.#mountOverlay(clones, writable, target, 0);
    } finally {
      for (const clone of clones) closeSync(clone);
    }
  }

  /**
   * Layers as one read-only tree, lowest first: what a build copies from, owners as the images say, or what a process of
   * a user namespace may see.
   */
  async mountView(layers: readonly string[], target: string, userNamespace: number | null = null): Promise<void> {
    // An overlay without an upper needs two layers; an empty one below changes nothing.
    const places = await this.#places([this.#empty, ...layers]);
    const clones: number[] = [];
    try {
      for (const place of places) {
        const clone = cloneMount(place);
        clones.push(clone);
        if (userNamespace !== null) mapIds(clone, userNamespace);
      }
      this.#mountOverlay(clones, [], target, MOUNT_ATTR_RDONLY);
    } finally {
      for (const clone of clones) closeSync(clone);
    }
  }

  /** A directory once more, for the processes of a user namespace: the ids that they write are kept as they see them. */
  mountDirectory(path: string, target: string, userNamespace: number): void {
    const clone = cloneMount(path);
    try {
      mapIds(clone, userNamespace);
      attachMount(clone, target);
    } finally {
      closeSync(clone);
    }
  }

  /** An empty directory in memory that only this mount namespace sees. @param size bytes */
  mountMemory(target: string, size: number): void {
    const options = [
      ["mode", "0711"],
      ["size", String(size)],
    ] as const;
    attach(newMount("tmpfs", options, MOUNT_ATTR_NODEV | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC), target);
  }

  /** Unmounts a root filesystem or view. Idempotent. EBUSY: a process of this mount namespace still uses it. */
  async unmountRootfs(target: string): Promise<void> {
    await unmountLater(target).catch((error: unknown) => {
      if (!hasCode(error, "EINVAL", "ENOENT")) throw error;
    });
  }

  /** Takes all layers' mounts away. */
  unmountLayers(): void {
    for (const { path } of mountsBelow(this.#dir).toReversed()) detachIfMounted(path);
    this.#mounted.clear();
  }

  /**
   * An image may have one layer twice (empty ones often), an overlay may not (ELOOP). The upper of the two hides all that
   * the lower one has, so the lower one is left out.
   */
  async #places(layers: readonly string[]): Promise<string[]> {
    const places: string[] = [];
    for (const [index, layer] of layers.entries()) {
      if (layers.lastIndexOf(layer) === index) places.push(await this.mountLayer(layer));
    }
    return places;
  }

  #targetOf(layer: string): string {
    return `${this.#dir}/${basename(layer, ".erofs")}`;
  }

  /** `layers` are detached mounts, lowest first. */
  #mountOverlay(layers: readonly number[], writable: readonly MountOption[], target: string, attributes: number): void {
    if (this.#layersByDescriptor) {
      try {
        attach(overlay(layers.toReversed(), writable, attributes), target);
        return;
      } catch (error) {
        // What kernels before 6.13 say to a descriptor, and those before 6.5 to any option of overlayfs that is one.
        if (!hasCode(error, "EINVAL", "ENOTSUP") || !mustUsePaths(layers)) throw error;
        this.#layersByDescriptor = false;
      }
    }
    this.#mountOverlayByPaths(layers, writable, target, attributes);
  }

  /** Layers get a place for as long as the overlay is made: it keeps private copies. */
  #mountOverlayByPaths(
    layers: readonly number[],
    writable: readonly MountOption[],
    target: string,
    attributes: number,
  ): void {
    const places: string[] = [];
    try {
      for (const [index, layer] of layers.entries()) {
        const place = `${this.#dir}/.${index.toString(36)}`;
        mkdirSync(place, { recursive: true });
        attachMount(layer, place);
        places.push(place);
      }
      const options: MountOption[] = [["lowerdir", places.toReversed().join(":")], ...writable];
      const text = [...options, ...fixed].map(([name, value]) => (value === true ? name : `${name}=${String(value)}`));
      const MS_RDONLY = 1;
      const MS_NODEV = 4;
      const flags = MS_NODEV | (attributes & MOUNT_ATTR_RDONLY ? MS_RDONLY : 0);
      mountLegacy("overlay", target, flags, text.join(","));
    } finally {
      for (const place of places) detachMount(place);
    }
  }
}

/**
 * Whatever the kernel's defaults are: directories of layers are copied or refused when renamed, and a file's content
 * is in the upper with its metadata, so that the upper directory alone is a complete layer.
 */
const fixed: readonly MountOption[] = [
  ["redirect_dir", "off"],
  ["metacopy", "off"],
  ["index", "off"],
  ["xino", "off"],
];

function overlay(topFirst: readonly number[], writable: readonly MountOption[], attributes: number): number {
  const lower = topFirst.map((layer): MountOption => ["lowerdir+", layer]);
  return newMount("overlay", [...lower, ...writable, ...fixed], MOUNT_ATTR_NODEV | attributes);
}

/** Whether the kernel refuses even the plainest overlay of descriptors. */
function mustUsePaths(layers: readonly number[]): boolean {
  const [one] = layers;
  if (one === undefined) return false;
  try {
    closeSync(overlay([one, one], [], MOUNT_ATTR_RDONLY));
    return false;
  } catch (error) {
    return hasCode(error, "EINVAL", "ENOTSUP");
  }
}

function attach(mount: number, target: string): void {
  try {
    attachMount(mount, target);
  } finally {
    closeSync(mount);
  }
}

/** Mounts an EROFS image read-only: the file itself since 6.12, before that through a loop device. */
async function mountImage(path: string, target: string): Promise<string> {
  mkdirSync(target, { recursive: true });
  const attributes = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV;
  try {
    attach(
      newMount(
        "erofs",
        [
          ["ro", true],
          ["source", path],
        ],
        attributes,
      ),
      target,
    );
    return target;
  } catch (error) {
    if (!hasCode(error, "ENOTBLK")) throw error;
  }
  const loop = await attachLoop(path, { readOnly: true, direct: false });
  try {
    attach(
      newMount(
        "erofs",
        [
          ["ro", true],
          ["source", loop.path],
        ],
        attributes,
      ),
      target,
    );
    return target;
  } finally {
    closeSync(loop.fd);
  }
}

function detachIfMounted(path: string): void {
  try {
    detachMount(path);
  } catch (error) {
    if (!hasCode(error, "EINVAL", "ENOENT")) throw error;
  }
}
