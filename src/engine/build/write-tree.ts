import { chmod, lchown, mkdir, open, symlink } from "node:fs/promises";
import { resolveIn } from "../../build/tree.ts";
import { BerthError } from "../../core/errors.ts";
import { type ByteString, showBytes, toByteString } from "../../image/layer-entry.ts";
import type { FileEntry, FileTree } from "./file-entry.ts";

/**
 * Copies what is in a directory of a tree into `directory`, which is empty and nobody else's. Names come from tenants:
 * each is one component of a path whose directories were all made here, and nothing is written through a link.
 * @throws BerthError `invalid_context` when the source is no directory
 */
export async function writeTree(tree: FileTree, source: string, directory: string): Promise<void> {
  const { path, entry, blocked } = await resolveIn(tree, toByteString(source));
  if (blocked || entry?.type !== "directory") {
    throw new BerthError(
      "invalid_context",
      `${showBytes(toByteString(source))} is no directory to begin a cache with.`,
    );
  }
  await writeChildren(tree, path, Buffer.from(directory));
}

async function writeChildren(tree: FileTree, from: ByteString, to: Buffer): Promise<void> {
  for (const name of await tree.list(from)) {
    const path = from === "/" ? `/${name}` : `${from}/${name}`;
    const entry = await tree.get(path);
    if (entry !== null) await write(tree, path, entry, Buffer.concat([to, Buffer.from(`/${name}`, "latin1")]));
  }
}

async function write(tree: FileTree, from: ByteString, entry: FileEntry, to: Buffer): Promise<void> {
  switch (entry.type) {
    case "other":
      return;
    case "symlink":
      await symlink(Buffer.from(entry.target, "latin1"), to);
      await lchown(to, entry.uid, entry.gid);
      return;
    case "directory":
      await mkdir(to, { mode: 0o700 });
      await writeChildren(tree, from, to);
      break;
    case "file": {
      const file = await open(to, "wx", 0o600);
      try {
        for await (const part of tree.read(from, entry)) await file.writeFile(part);
      } finally {
        await file.close();
      }
    }
  }
  await lchown(to, entry.uid, entry.gid);
  await chmod(to, entry.mode);
}
