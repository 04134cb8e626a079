import { randomUUID } from "node:crypto";
import type { RemoteSource } from "../../build/remote-source.ts";
import { BerthError } from "../../core/errors.ts";
import type { ContextFiles } from "../../core/named-context.ts";
import { noXattrs, toByteString } from "../../image/layer-entry.ts";
import { Turns } from "../../image/turns.ts";
import { type Context, readContext } from "./context.ts";
import { ContextTree } from "./context-tree.ts";
import { hostDecompress } from "./decompress-program.ts";
import { download } from "./download.ts";
import { withGitTree } from "./git-tree.ts";
import type { BuildMeans } from "./ports.ts";

/** What one build may fetch: so many sources at once, and none any more when those before had so many bytes. */
export const remoteLimits = { atOnce: 3, bytes: 8 * 2 ** 30 };

/** What fetching needs of a build's means. */
export type RemoteMeans = Pick<BuildMeans, "sandboxes" | "outbound" | "http" | "scratch">;

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
    signal.throwIfAborted();
    if (this.#bytes > this.#limits.bytes) {
      throw new BerthError("invalid_context", `What the build fetches has more than ${this.#limits.bytes} bytes.`);
    }
    const context = await this.#fetch(source, checksum, signal);
    this.#bytes += context.bytes;
    return context;
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
    const { file, sizeBytes, sha256, modified } = await download(
      source.url,
      this.#spoolPath(),
      this.#means.http,
      signal,
    );
    if (checksum !== null && checksum !== `sha256:${sha256}`) {
      await file.close();
      throw new BerthError("digest_mismatch", `The file has the checksum sha256:${sha256}, not ${checksum}.`);
    }
    const tree = new ContextTree(file);
    tree.add([toByteString(source.name === "" ? "download" : source.name)], {
      type: "file",
      mode: 0o600,
      uid: 0,
      gid: 0,
      mtime: { seconds: modified, nanoseconds: 0 },
      size: sizeBytes,
      target: "",
      xattrs: noXattrs,
      offset: 0,
      sha256,
    });
    return { tree, files: 1, bytes: sizeBytes, newest: modified, close: () => file.close() };
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
