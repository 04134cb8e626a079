import { readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { type LayerEntry, noXattrs, toByteString } from "../image/layer-entry.ts";
import { writeTar } from "../image/tar-write.ts";

/** A file of a build context. */
export interface ContextFile {
  path: string;
  /** Permission bits. */
  mode: number;
  content: Uint8Array;
}

/** The files of a directory and those below it. */
export function filesOf(directory: string): ContextFile[] {
  return readdirSync(directory, { recursive: true, encoding: "utf8" })
    .sort()
    .map((path) => ({ path, stat: statSync(join(directory, path)) }))
    .filter(({ stat }) => stat.isFile())
    .map(({ path, stat }) => ({ path, mode: stat.mode & 0o777, content: readFileSync(join(directory, path)) }));
}

/** A build context as a tar. */
export async function archive(files: readonly ContextFile[]): Promise<Uint8Array<ArrayBuffer>> {
  const entries = files.map(
    ({ path, mode, content }): LayerEntry => ({
      path: toByteString(path),
      type: "file",
      mode,
      uid: 0,
      gid: 0,
      mtime: { seconds: 0, nanoseconds: 0 },
      size: content.length,
      target: "",
      xattrs: noXattrs,
      content: [content],
    }),
  );
  const chunks: Uint8Array[] = [];
  for await (const chunk of writeTar(entries)) chunks.push(chunk);
  return Buffer.concat(chunks);
}
