import { randomUUID } from "node:crypto";
import type { FileHandle } from "node:fs/promises";
import type { RemoteSource } from "../../build/remote-source.ts";
import type { KnownFile } from "../../core/build-request.ts";
import { BerthError } from "../../core/errors.ts";
import type { ContextFiles } from "../../core/named-context.ts";
import { Turns } from "../../image/turns.ts";
import { type Context, readContext } from "./context.ts";
import type { ContextTree } from "./context-tree.ts";
import { hostDecompress } from "./decompress-program.ts";
import { type Download, download, downloadUnless } from "./download.ts";
import { fileContext, laterContent } from "./file-context.ts";
import { withGitTree } from "./git-tree.ts";
import type { BuildMeans } from "./ports.ts";

/** What one build may fetch: so many sources at once, and none any more when those before had so many bytes. */
export const remoteLimits = { atOnce: 3, bytes: 8 * 2 ** 30 };

/** What fetching needs of a build's means. */
export type RemoteMeans = Pick<BuildMeans, "sandboxes" | "outbound" | "http" | "files" | "scratch">;

/** What the steps of one build read from elsewhere: each source is fetched once, and goes when the build has ended. */
export class RemoteTrees {
  readonly #means: RemoteMeans;
  readonly #limits: typeof remoteLimits;
  readonly #turns: Turns;
  readonly #fetched = new Map<string, Promise<Context>>();
  #bytes = 0;

  constructor(means: RemoteMeans, limits = remoteLimits) {
    this.#means = means;
    this.#limits = limits;
    this.#turns = new Turns(limits.atOnce);
  }

  /**
   * A file as a tree that holds it alone, an archive's content, or a commit's tree; checked against `checksum` (see `CopyStep`). `signal` is that of all
   * the build's steps.
   * @throws BerthError `digest_mismatch`, `invalid_context` when the build has fetched too much, or as `download` and `withGitTree`; the signal's reason
   */
  async tree(source: RemoteSource | ContextFiles, checksum: string | null, signal: AbortSignal): Promise<ContextTree> {
    const key = JSON.stringify([source, checksum]);
    let fetched = this.#fetched.get(key);
    if (fetched === undefined) {
      fetched = this.#turns.take(() => this.#bounded(source, checksum, signal));
      this.#fetched.set(key, fetched);
    }
    return (await fetched).tree;
  }

  async close(): Promise<void> {
    for (const one of await Promise.allSettled(this.#fetched.values())) {
      if (one.status === "fulfilled") await one.value.close();
    }
  }

  async #bounded(source: RemoteSource | ContextFiles, checksum: string | null, signal: AbortSignal): Promise<Context> {
    this.#checkBytes(signal);
    const context = await this.#fetch(source, checksum, signal);
    this.#bytes += context.bytes;
    return context;
  }

  #checkBytes(signal: AbortSignal): void {
    signal.throwIfAborted();
    if (this.#bytes <= this.#limits.bytes) return;
    throw new BerthError("invalid_context", `What the build fetches has more than ${this.#limits.bytes} bytes.`);
  }

  #fetch(source: RemoteSource | ContextFiles, checksum: string | null, signal: AbortSignal): Promise<Context> {
    switch (source.kind) {
      case "http":
        return this.#file(source, checksum, signal);
      case "tar":
        return this.#archive(source.url, signal);
      case "git":
        return this.#commit(source, checksum, signal);
    }
  }

  async #file(source: RemoteSource & { kind: "http" }, checksum: string | null, signal: AbortSignal): Promise<Context> {
    const { files, http } = this.#means;
    const known = checksum === null ? await files.find(source.url) : null;
    const found = await downloadUnless(known, source.url, this.#spoolPath(), http, signal);
    if (found === null && known !== null) {
      const content = laterContent(() => this.#turns.take(() => this.#again(source.url, known, signal)));
      return fileContext(source.name, known, content, 0);
    }
    if (found === null) throw new Error("a file was compared with none");
    const { file, sha256, sizeBytes } = found;
    if (checksum !== null && checksum !== `sha256:${sha256}`) {
      await file.close();
      throw new BerthError("digest_mismatch", `The file has the checksum sha256:${sha256}, not ${checksum}.`);
    }
    if (checksum === null) await this.#remember(source.url, found);
    return fileContext(source.name, found, file, sizeBytes);
  }

  async #remember(url: string, { etag, modified, sha256, sizeBytes, comparable }: Download): Promise<void> {
    if (comparable) await this.#means.files.keep(url, { etag, modified, sha256, sizeBytes });
  }

  /** Downloads what was known, for its bytes. */
  async #again(url: string, known: KnownFile, signal: AbortSignal): Promise<FileHandle> {
    this.#checkBytes(signal);
    const found = await download(url, this.#spoolPath(), this.#means.http, signal);
    this.#bytes += found.sizeBytes;
    if (found.sha256 === known.sha256) return found.file;
    await found.file.close();
    // Another attempt knows better.
    await this.#remember(url, found);
    throw new BerthError("download_failed", "A file to ADD has changed while the build ran.");
  }

  async #archive(url: string, signal: AbortSignal): Promise<Context> {
    const { file } = await download(url, this.#spoolPath(), this.#means.http, signal);
    try {
      const plain = hostDecompress(this.#means.sandboxes)(file.createReadStream({ start: 0, autoClose: false }));
      return await readContext(plain, this.#spoolPath());
    } finally {
      await file.close();
    }
  }

  #commit(source: RemoteSource & { kind: "git" }, checksum: string | null, signal: AbortSignal): Promise<Context> {
    return withGitTree({ ...source, commit: null }, null, this.#means, signal, async ({ commit, tar, whole }) => {
      if (checksum !== null && !commit.startsWith(checksum)) {
        throw new BerthError("digest_mismatch", `The repository's commit is ${commit}, not ${checksum}.`);
      }
      const context = await readContext(tar, this.#spoolPath());
      try {
        await whole();
      } catch (error) {
        await context.close();
        throw error;
      }
      return context;
    });
  }

  #spoolPath(): string {
    return `${this.#means.scratch}/${randomUUID()}`;
  }
}
