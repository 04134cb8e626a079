import { randomUUID } from "node:crypto";
import { mkdir, readdir, readFile, rename, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { BerthError } from "../core/errors.ts";
import type { Layer } from "../core/image.ts";
import { digestPattern } from "../core/reference.ts";
import { type BlobStore, syncDirectory } from "./blobs.ts";
import { coalesce } from "./byte-reader.ts";
import { decompress, gzip } from "./compress.ts";
import { type Converted, convertLayer } from "./convert.ts";
import { digestHex } from "./digest.ts";
import type { LayerEntry } from "./layer-entry.ts";
import { defaultLimits, type LayerLimits } from "./layer-limits.ts";
import { writeTar } from "./tar-write.ts";
import { Tee } from "./tee.ts";

/** Raised when the same tar gives another image than before; images of another version are made again. */
const writerVersion = 1;

const gzipLayer = "application/vnd.oci.image.layer.v1.tar+gzip";

/** Small chunks are put together to this size: (de)compressing and writing wake a thread for each. */
const transferChunk = 256 << 10;

/** What is kept beside an image, in `<hex>.json`. */
interface LayerRecord {
  writer: number;
  imageBytes: number;
  /** Digests of the blobs whose plain tar was seen to have this diff id. Another's claim is checked, not believed. */
  digests: string[];
}

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

  constructor(directory: string, blobs: BlobStore, limits: LayerLimits = defaultLimits) {
    this.#directory = directory;
    this.#blobs = blobs;
    this.#limits = limits;
  }

  /** The image of a diff id, to be mounted; it is there once `ensure`, `import` or `create` has returned. */
  path(diffId: string): string {
    return join(this.#directory, `${digestHex(diffId)}.erofs`);
  }

  /** Whether the image of this diff id is there and whole. */
  async has(diffId: string): Promise<boolean> {
    return (await this.#record(diffId)) !== null;
  }

  /** Whether the layer is there *and* its blob is known to be of this diff id; a manifest may claim any pair. */
  async holds(layer: Pick<Layer, "digest" | "diffId">): Promise<boolean> {
    const record = await this.#record(layer.diffId);
    return record !== null && record.digests.includes(layer.digest) && (await this.#blobs.size(layer.digest)) !== null;
  }

  /**
   * Takes in a layer's compressed blob in one pass: blob and image are stored only when size, digest and diff id are as
   * expected. `open` is called once, and not at all when the layer is there already, unless it is to be fetched `always`.
   * @throws BerthError `digest_mismatch`, `invalid_image`, `layer_too_large`, `disk_full`, or the source's error.
   */
  async import(
    open: () => AsyncIterable<Uint8Array> | Promise<AsyncIterable<Uint8Array>>,
    expect: Layer,
    options: { always?: boolean } = {},
  ): Promise<void> {
    await this.#exclusively(expect.diffId, async () => {
      if (options.always !== true && (await this.holds(expect))) return;
      const blob = new Tee(coalesce(exactly(await open(), expect), transferChunk));
      const [toBlob, toImage] = blob.branches;
      await this.#convert(blob, decompress(toImage), async (conversion) => {
        const confirm = async (): Promise<void> => {
          const { diffId } = await conversion;
          if (diffId !== expect.diffId) {
            throw new BerthError("digest_mismatch", `The layer's content is ${diffId}, not ${expect.diffId}.`);
          }
        };
        return this.#blobs.put(toBlob, { digest: expect.digest, maxBytes: expect.sizeBytes, confirm });
      });
    });
  }

  /** Makes a layer of entries, in one pass: its blob (gzip) and its image. The same entries give the same layer. */
  async create(entries: AsyncIterable<LayerEntry> | Iterable<LayerEntry>): Promise<Layer> {
    const tar = new Tee(coalesce(writeTar(entries), transferChunk));
    const [toBlob, toImage] = tar.branches;
    const { converted, digest, sizeBytes } = await this.#convert(tar, toImage, async (conversion) => {
      const confirm = async (): Promise<void> => {
        await conversion;
      };
      return this.#blobs.put(gzip(toBlob), { maxBytes: Number.MAX_SAFE_INTEGER, confirm });
    });
    return { digest, diffId: converted.diffId, sizeBytes, mediaType: gzipLayer };
  }

  /** Makes sure that the image is there, from its blob when it is not. The layer must be one of a stored image. */
  async ensure(layer: Layer): Promise<string> {
    if (!(await this.has(layer.diffId))) {
      await this.import(() => this.#blobs.open(layer.digest), layer);
    }
    return this.path(layer.diffId);
  }

  /** The diff ids of all images. */
  async *list(): AsyncGenerator<string, void> {
    await mkdir(this.#directory, { recursive: true, mode: 0o700 });
    for (const name of await readdir(this.#directory)) {
      const diffId = `sha256:${name.replace(/\.erofs$/, "")}`;
      if (name.endsWith(".erofs") && digestPattern.test(diffId)) yield diffId;
    }
  }

  /** Deletes an image, and not its blob. Where it is mounted it stays until it is unmounted. */
  async remove(diffId: string): Promise<void> {
    await this.#exclusively(diffId, () => this.#delete(diffId));
  }

  /** Deletes what conversions that were cut off have left. To be called before any other use. */
  async removeUnfinished(): Promise<void> {
    await mkdir(this.#directory, { recursive: true, mode: 0o700 });
    for (const name of await readdir(this.#directory)) {
      if (name.endsWith(".tmp")) await rm(join(this.#directory, name), { force: true });
    }
  }

  /**
   * Converts the tar beside `store`, which stores the blob; both read branches of `source`. The image is kept only when
   * both were successful. An error of `store` counts first: a blob that is not what it should be explains a conversion
   * that failed.
   */
  async #convert(
    source: Tee<Uint8Array>,
    tar: AsyncIterable<Uint8Array>,
    store: (conversion: Promise<Converted>) => Promise<{ digest: string; sizeBytes: number }>,
  ): Promise<{ converted: Converted; digest: string; sizeBytes: number }> {
    await mkdir(this.#directory, { recursive: true, mode: 0o700 });
    const temporary = join(this.#directory, `${randomUUID()}.tmp`);
    const conversion = convertLayer(tar, temporary, this.#limits);
    conversion.catch(() => undefined);
    try {
      const stored = await store(conversion);
      const converted = await conversion;
      await this.#keep(temporary, converted, stored.digest);
      return { converted, ...stored };
    } catch (error) {
      await source.stop(error);
      throw error;
    } finally {
      await conversion.catch(() => undefined);
      await rm(temporary, { force: true });
    }
  }

  async #keep(temporary: string, converted: Converted, digest: string): Promise<void> {
    const { diffId, imageBytes } = converted;
    const before = await this.#record(diffId);
    const digests = [...new Set([...(before?.digests ?? []), digest])];
    // An image that is there may be mounted; it is the same.
    if (before === null) await rename(temporary, this.path(diffId));
    const record: LayerRecord = { writer: writerVersion, imageBytes, digests };
    const recordFile = this.#recordPath(diffId);
    await writeFile(`${recordFile}.tmp`, JSON.stringify(record), { flush: true });
    await rename(`${recordFile}.tmp`, recordFile);
    await syncDirectory(this.#directory);
  }

  /** The record of a whole image of this version; null when it is missing, cut short or old. */
  async #record(diffId: string): Promise<LayerRecord | null> {
    try {
      const record = JSON.parse(await readFile(this.#recordPath(diffId), "utf8")) as LayerRecord;
      const { size } = await stat(this.path(diffId));
      return record.writer === writerVersion && record.imageBytes === size ? record : null;
    } catch (error) {
      if (error instanceof SyntaxError || (error as NodeJS.ErrnoException).code === "ENOENT") return null;
      throw error;
    }
  }

  #recordPath(diffId: string): string {
    return join(this.#directory, `${digestHex(diffId)}.json`);
  }

  async #delete(diffId: string): Promise<void> {
    await rm(this.#recordPath(diffId), { force: true });
    await rm(this.path(diffId), { force: true });
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

/** The source's bytes, which must be as many as the layer is said to have. */
async function* exactly(source: AsyncIterable<Uint8Array>, expect: Layer): AsyncGenerator<Uint8Array, void> {
  let seen = 0;
  for await (const chunk of source) {
    seen += chunk.length;
    if (seen > expect.sizeBytes) {
      throw new BerthError("digest_mismatch", `The blob ${expect.digest} is larger than its manifest says.`);
    }
    yield chunk;
  }
  if (seen < expect.sizeBytes) {
    throw new BerthError("digest_mismatch", `The blob ${expect.digest} is smaller than its manifest says.`);
  }
}
