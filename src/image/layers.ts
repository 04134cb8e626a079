import { randomUUID } from "node:crypto";
import { rmSync, statSync } from "node:fs";
import { mkdir, open, readdir, readFile, rename, rm, stat, utimes, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { LayerCompression } from "../core/build-request.ts";
import type { Layer } from "../core/image.ts";
import { digestPattern } from "../core/reference.ts";
import type { BlobStore, StoredBlob } from "./blobs.ts";
import { coalesce } from "./byte-reader.ts";
import { compress, decompress } from "./compress.ts";
import { type Converted, convertLayer } from "./convert.ts";
import { digestHex, digestOf } from "./digest.ts";
import { diskError } from "./disk-error.ts";
import { checkDiffId, exactly, verify } from "./expected-layer.ts";
import { inheritedAttributes, type StackedLayer } from "./inherited-attributes.ts";
import type { ByteString, LayerEntry } from "./layer-entry.ts";
import { defaultLimits, type LayerLimits } from "./layer-limits.ts";
import { writeTar } from "./tar-write.ts";
import { Tee } from "./tee.ts";
import { Turns } from "./turns.ts";

/**
 * Raised when the images that were made before must not be used any more: those of another version are made again. (Version 1
 * is with and without small files behind their inodes: both show the same.)
 */
const writerVersion = 1;

/** Small chunks are put together to this size: (de)compressing and writing wake a thread for each. */
const transferChunk = 256 << 10;

/** Layers that are taken from the store at the same time: each needs up to 100 MB of memory and most of a core. */
const takenAtOnce = 3;

/** How often the use of an image is noted at most. */
const useNotedMs = 5 * 60_000;

/** What is kept beside an image, in `<hex>.json`. */
interface LayerRecord {
  writer: number;
  imageBytes: number;
  /** Digests of the blobs whose plain tar was seen to have this diff id. Another's claim is checked, not believed. */
  digests: string[];
  implicit: ByteString[];
  opaqueRoot: boolean;
}

/** A layer that was just made. */
export interface MadeLayer {
  /** It can be mounted on this host. */
  layer: Layer;
  /** Resolves once its blob is in the store, and can be told of: until then only this process knows the layer. */
  stored: Promise<void>;
}

/** What stores the blob of a layer that is being converted. */
interface Conversion {
  /** What the tar is converted to; it has failed when the tar is no layer. */
  converted: Promise<Converted>;
  /** Lets the image be used before the blob is stored, whose digest this is. */
  place: (digest: string) => Promise<Converted>;
}

/** Images that only complete a stack of layers; they have no record and are made again by the next process. */
const topSuffix = ".top.erofs";

/**
 * The layers of one host: for each diff id one read-only EROFS image, `<directory>/<hex>.erofs`. It is a cache of the blob
 * store; a layer appears whole or not at all. Only one process may use the directory.
 */
export class LayerStore {
  readonly #directory: string;
  readonly #blobs: BlobStore;
  readonly #limits: LayerLimits;
  /** The last task of each diff id: those of one diff id run one after the other. */
  readonly #tasks = new Map<string, Promise<unknown>>();
  /** Those that take a layer from the store. */
  readonly #takers = new Turns(takenAtOnce);
  /** Records as they are on disk. */
  readonly #records = new Map<string, LayerRecord>();
  /** When the use of an image was last noted. */
  readonly #uses = new Map<string, number>();
  #isMade = false;
  /** Per stack of layers (their diff ids) the image to put on top; null: none is needed. */
  readonly #tops = new Map<string, string | null>();

  constructor(directory: string, blobs: BlobStore, limits: LayerLimits = defaultLimits) {
    this.#directory = directory;
    this.#blobs = blobs;
    this.#limits = limits;
  }

  /** The image of a diff id; it is there once `ensure`, `import` or `create` has returned. */
  path(diffId: string): string {
    return join(this.#directory, `${digestHex(diffId)}.erofs`);
  }

  /**
   * Whether the layer's image is there and whole, and its blob was seen to be what it shows: to claim the diff id of somebody
   * else's layer of another blob gives nothing.
   */
  async has({ digest, diffId }: Pick<Layer, "digest" | "diffId">): Promise<boolean> {
    if ((await this.#record(diffId))?.digests.includes(digest) !== true) return false;
    await this.#noteUse(diffId);
    return true;
  }

  /**
   * Makes sure that the layer is there if its blob is in the store: whether it is. That the blob has this diff id was seen,
   * or is seen now; a manifest may claim any pair.
   */
  async obtain(layer: Layer): Promise<boolean> {
    if ((await this.#blobs.size(layer.digest)) === null) return false;
    await this.#take(layer);
    return true;
  }

  /**
   * Takes in a layer's compressed blob in one pass: blob and image are stored only when size, digest and diff id are as
   * expected. A layer of 9,000 files, 73 MB as gzip and 228 MB plain, takes 1.7 s of CPU from a registry on loopback to
   * both files, spread over zlib's thread, the writers' and Node's; gunzip and the two sha256 are 1.0 s of that. `open` is
   * called once.
   * @throws BerthError `digest_mismatch`, `invalid_image`, `layer_too_large`, `disk_full`, or the source's error.
   */
  async import(
    open: () => AsyncIterable<Uint8Array> | Promise<AsyncIterable<Uint8Array>>,
    expect: Layer,
  ): Promise<void> {
    await this.#exclusively(expect.diffId, async () => {
      const blob = new Tee(coalesce(exactly(await open(), expect), transferChunk));
      const [toBlob, toImage] = blob.branches;
      await this.#convert(blob, decompress(toImage), async ({ converted }) => {
        const confirm = async (): Promise<void> => checkDiffId(await converted, expect);
        return this.#blobs.put(toBlob, { digest: expect.digest, maxBytes: expect.sizeBytes, confirm });
      });
    });
  }

  /** Makes a layer of entries, in one pass: its blob and its image. The same entries give the same layer. */
  async create(entries: AsyncIterable<LayerEntry> | Iterable<LayerEntry>): Promise<Layer> {
    const { layer, stored } = await this.make(entries);
    await stored;
    return layer;
  }

  /**
   * Makes a layer as `create` does, and returns it as soon as it can be mounted: what waits for the disk goes on meanwhile.
   * `stored` must be waited for, also where it is the only one to fail.
   */
  async make(
    entries: AsyncIterable<LayerEntry> | Iterable<LayerEntry>,
    compression: LayerCompression = "gzip",
  ): Promise<MadeLayer> {
    const tar = new Tee(coalesce(writeTar(entries), transferChunk));
    const [toBlob, toImage] = tar.branches;
    const made = Promise.withResolvers<Layer>();
    const stored = this.#convert(tar, toImage, async ({ converted, place }) => {
      const written = ({ digest, sizeBytes }: StoredBlob): void => {
        const mediaType = `application/vnd.oci.image.layer.v1.tar+${compression}`;
        const layerOf = ({ diffId }: Converted): Layer => ({ digest, diffId, sizeBytes, mediaType });
        // That it failed is told when nothing of it is left.
        place(digest).then(
          (image) => made.resolve(layerOf(image)),
          () => undefined,
        );
      };
      const confirm = async (): Promise<void> => {
        await converted;
      };
      return this.#blobs.put(compress(toBlob, compression), { maxBytes: Number.MAX_SAFE_INTEGER, confirm, written });
    });
    stored.catch(made.reject);
    return { layer: await made.promise, stored };
  }

  /**
   * Makes sure that the image is there, from the store's blob when it is not, which is held against the diff id: images that
   * were sent to the API are recorded before a host has seen them. @throws BerthError `digest_mismatch`, and as `import`
   */
  async ensure(layer: Layer): Promise<string> {
    if (!(await this.has(layer))) await this.#take(layer);
    return this.path(layer.diffId);
  }

  /** Makes the image from the store's blob, unless it was made from it before. */
  async #take(expect: Layer): Promise<void> {
    await this.#exclusively(expect.diffId, async () => {
      if (await this.has(expect)) return;
      await this.#takers.take(async () => {
        const blob = new Tee(coalesce(exactly(await this.#blobs.open(expect.digest), expect), transferChunk));
        const [toHash, toImage] = blob.branches;
        await this.#convert(blob, decompress(toImage), async ({ converted }) => {
          const stored = await verify(toHash, expect);
          checkDiffId(await converted, expect);
          return stored;
        });
      });
    });
  }

  /**
   * The images to mount for these layers (lowest first, both), so that the whole is what OCI's layer.md says: those that an
   * opaque root hides are left out, and on top is what restores attributes of directories that a layer does not describe.
   * Makes sure that all are there. Costs one stat a layer when they are.
   */
  async lowers(layers: readonly Layer[]): Promise<string[]> {
    const ensured = await Promise.all(layers.map(async (layer) => ({ path: await this.ensure(layer), layer })));
    const stack = ensured.map(({ path, layer }) => {
      const record = this.#records.get(layer.diffId);
      return { path, implicit: record?.implicit ?? [], opaqueRoot: record?.opaqueRoot ?? false };
    });
    const visible = stack.slice(
      Math.max(
        0,
        stack.findLastIndex((layer) => layer.opaqueRoot),
      ),
    );
    const paths = visible.map((layer) => layer.path);
    if (visible.slice(1).every((layer) => layer.implicit.length === 0)) return paths;
    const key = digestHex(digestOf(Buffer.from(paths.join("\n"))));
    const top = await this.#exclusively(key, () => this.#top(key, visible));
    return top === null ? paths : [...paths, top];
  }

  /** The diff ids of all images. */
  async *list(): AsyncGenerator<string, void> {
    await mkdir(this.#directory, { recursive: true, mode: 0o700 });
    for (const name of await readdir(this.#directory)) {
      const diffId = `sha256:${name.replace(/\.erofs$/, "")}`;
      if (name.endsWith(".erofs") && digestPattern.test(diffId)) yield diffId;
    }
  }

  /** Milliseconds since an image was made or asked for, within some minutes; 0 when it is not there. */
  async unusedMs(diffId: string): Promise<number> {
    const used =
      (await stat(this.#recordPath(diffId)).catch(() => null)) ?? (await stat(this.path(diffId)).catch(() => null));
    return used === null ? 0 : Date.now() - used.mtimeMs;
  }

  /**
   * Deletes an image that was not asked for during so many milliseconds: whether it was. `unmount` is called just before;
   * where else it is mounted it stays.
   */
  async removeUnused(diffId: string, unusedMs: number, unmount: () => void): Promise<boolean> {
    return this.#exclusively(diffId, async () => {
      if ((await this.unusedMs(diffId)) < unusedMs) return false;
      // From here to where the record is gone nothing else runs: who asks after that is told that the image is not there.
      if (Date.now() - (this.#uses.get(diffId) ?? 0) < unusedMs) return false;
      unmount();
      this.#records.delete(diffId);
      this.#uses.delete(diffId);
      rmSync(this.#recordPath(diffId), { force: true });
      await rm(this.path(diffId), { force: true });
      return true;
    });
  }

  /** Deletes what an earlier process has left that this one does not know. To be called before any other use. */
  async removeUnfinished(): Promise<void> {
    await mkdir(this.#directory, { recursive: true, mode: 0o700 });
    for (const name of await readdir(this.#directory)) {
      if (name.endsWith(".tmp") || name.endsWith(topSuffix)) await rm(join(this.#directory, name), { force: true });
    }
  }

  /**
   * Converts the tar beside `store`, which stores the blob; both read branches of `source`. The image is kept only when
   * both were successful, or was placed before: then it is what it says, and goes when nobody uses it. An error of `store`
   * counts first: a blob that is not what it should be explains a conversion that failed.
   */
  async #convert(
    source: Tee<Uint8Array>,
    tar: AsyncIterable<Uint8Array>,
    store: (conversion: Conversion) => Promise<StoredBlob>,
  ): Promise<void> {
    if (!this.#isMade) await mkdir(this.#directory, { recursive: true, mode: 0o700 });
    this.#isMade = true;
    const temporary = join(this.#directory, `${randomUUID()}.tmp`);
    const converted = convertLayer(tar, temporary, this.#limits);
    converted.catch(() => undefined);
    const placing: { done?: Promise<Converted>; kept?: Promise<void> } = {};
    const place = (digest: string): Promise<Converted> => {
      placing.done ??= converted.then((image) => this.#place(temporary, image, digest));
      placing.kept ??= placing.done.then(({ diffId }) => this.#keepRecord(diffId));
      placing.kept.catch(() => undefined);
      return placing.done;
    };
    try {
      const stored = await store({ converted, place });
      await place(stored.digest);
      await placing.kept;
    } catch (error) {
      await source.stop(error);
      throw error;
    } finally {
      await Promise.allSettled([converted, placing.kept ?? converted]);
      await rm(temporary, { force: true });
    }
  }

  async #top(key: string, stack: readonly StackedLayer[]): Promise<string | null> {
    const known = this.#tops.get(key);
    if (known !== undefined) return known;
    const entries = await inheritedAttributes(stack);
    const path = entries.length === 0 ? null : join(this.#directory, `${key}${topSuffix}`);
    if (path !== null) {
      const temporary = join(this.#directory, `${randomUUID()}.tmp`);
      try {
        await convertLayer(writeTar(entries), temporary, this.#limits);
        await rename(temporary, path);
      } finally {
        await rm(temporary, { force: true });
      }
    }
    this.#tops.set(key, path);
    return path;
  }

  /** Puts an image in its place, where this process finds it; the next one does when its record is kept. */
  async #place(temporary: string, converted: Converted, digest: string): Promise<Converted> {
    const { diffId, imageBytes, implicit, opaqueRoot } = converted;
    const before = await this.#record(diffId);
    const made = { writer: writerVersion, imageBytes, digests: [], implicit, opaqueRoot };
    // An image that is there may be mounted. It shows the same, though it need not be so many bytes.
    if (before === null) await rename(temporary, this.path(diffId));
    else await this.#noteUse(diffId);
    const record = before ?? made;
    this.#records.set(diffId, { ...record, digests: [...new Set([...record.digests, digest])] });
    return converted;
  }

  /**
   * Writes the record of an image that is in its place. The image is durable before: one whose size is right is whole. The
   * record need not be, nor the names of both: without them the image is made from its blob again.
   */
  async #keepRecord(diffId: string): Promise<void> {
    const record = this.#records.get(diffId);
    // It was removed meanwhile.
    if (record === undefined) return;
    const recordFile = this.#recordPath(diffId);
    // Two builds may make the same layer at the same time.
    const unfinished = `${recordFile}.${randomUUID()}.tmp`;
    await syncFile(this.path(diffId)).catch(diskError);
    try {
      await writeFile(unfinished, JSON.stringify(record)).catch(diskError);
      await rename(unfinished, recordFile);
    } catch (error) {
      await rm(unfinished, { force: true });
      throw error;
    }
  }

  /** The record of a whole image of this version; null when it is missing, cut short or old. */
  async #record(diffId: string): Promise<LayerRecord | null> {
    try {
      // Of a local file system, and on the way of each start: waiting for a thread takes longer than the call.
      const { size } = statSync(this.path(diffId));
      const record =
        this.#records.get(diffId) ?? (JSON.parse(await readFile(this.#recordPath(diffId), "utf8")) as LayerRecord);
      if (record.writer !== writerVersion || record.imageBytes !== size) return null;
      this.#records.set(diffId, record);
      return record;
    } catch (error) {
      if (error instanceof SyntaxError || (error as NodeJS.ErrnoException).code === "ENOENT") return null;
      throw error;
    }
  }

  /** By the record's time of change, which outlives this process. */
  async #noteUse(diffId: string): Promise<void> {
    const now = Date.now();
    if (now - (this.#uses.get(diffId) ?? 0) < useNotedMs) return;
    this.#uses.set(diffId, now);
    await utimes(this.#recordPath(diffId), now / 1000, now / 1000).catch(() => undefined);
  }

  #recordPath(diffId: string): string {
    return join(this.#directory, `${digestHex(diffId)}.json`);
  }

  async #exclusively<T>(diffId: string, task: () => Promise<T>): Promise<T> {
    const before = this.#tasks.get(diffId) ?? Promise.resolve();
    const run = before.then(task, task);
    this.#tasks.set(diffId, run);
    try {
      return await run;
    } finally {
      if (this.#tasks.get(diffId) === run) this.#tasks.delete(diffId);
    }
  }
}

async function syncFile(path: string): Promise<void> {
  const file = await open(path, "r");
  try {
    await file.datasync();
  } finally {
    await file.close();
  }
}
