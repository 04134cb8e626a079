import type { FileHandle } from "node:fs/promises";
import type { KnownFile } from "../../core/build-request.ts";
import { noXattrs, toByteString } from "../../image/layer-entry.ts";
import type { Context } from "./context.ts";
import { ContextTree, type Spool } from "./context-tree.ts";

/** Content that can be read and let go of. */
type Content = Spool & Pick<FileHandle, "close">;

/**
 * A downloaded file as a tree that holds it alone.
 * @param bytes What it took to fetch it.
 */
export function fileContext(
  name: string,
  { modified, sizeBytes, sha256 }: KnownFile,
  content: Content,
  bytes: number,
): Context {
  const tree = new ContextTree(content);
  tree.add([toByteString(name === "" ? "download" : name)], {
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
  return { tree, files: 1, bytes, newest: modified, close: () => content.close() };
}

/** Content that is fetched when it is first read. */
export function laterContent(fetch: () => Promise<FileHandle>): Content {
  let fetched: Promise<FileHandle> | null = null;
  return {
    read: async (buffer, offset, length, position) => {
      fetched ??= fetch();
      return (await fetched).read(buffer, offset, length, position);
    },
    // A fetch that failed has left nothing, and has told whoever read.
    close: async () => fetched?.then((file) => file.close()).catch(() => undefined),
  };
}
