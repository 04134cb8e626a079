import { randomUUID } from "node:crypto";
import { constants } from "node:fs";
import { type FileHandle, lchown, link, mkdir, open, rename, rm, symlink } from "node:fs/promises";
import { BerthError } from "../core/errors.ts";
import { type ByteString, type LayerEntry, showBytes } from "../image/layer-entry.ts";
import { hasCode, O_DIRECTORY } from "../isolation/apply/ffi.ts";
import { type ContainerRoot, nameIn, openName, pathError } from "./container-root.ts";

/** What was written. */
export interface Written {
  entries: number;
  bytes: number;
}

/**
 * Writes the entries of a tar into a directory of a container, in their order; what is there already is replaced, but a
 * directory only by a directory. Each file appears whole. What was written before an error stays.
 * @throws BerthError `file_not_found`, `invalid_path`, `invalid_archive`, `disk_full`; what the entries' source throws
 */
export async function writeTree(
  root: ContainerRoot,
  directory: string,
  entries: AsyncIterable<LayerEntry>,
  signal: AbortSignal,
): Promise<Written> {
  const top = await root.open(directory, O_DIRECTORY);
  await top.close();
  const written = { entries: 0, bytes: 0 };
  for await (const entry of entries) {
    signal.throwIfAborted();
    await writeEntry(root, directory, entry, signal);
    written.entries++;
    written.bytes += entry.size;
  }
  return written;
}

async function writeEntry(
  root: ContainerRoot,
  directory: string,
  entry: LayerEntry,
  signal: AbortSignal,
): Promise<void> {
  const { parent, name } = split(entry.path);
  if (name === null) return;
  const into = await makeDirectory(root, directory, parent);
  try {
    if (entry.type === "directory") {
      await writeDirectory(root, into, name, entry);
      return;
    }
    // Made beside its place under a name that nothing has, and then put there.
    const draft = `.berth-${randomUUID()}`;
    try {
      await makeDraft(root, directory, into, draft, entry, signal);
      await rename(nameIn(into, draft), nameIn(into, name));
    } finally {
      await rm(nameIn(into, draft), { force: true });
    }
  } catch (error) {
    throw pathError(error, `${directory}/${textOf(entry.path)}`);
  } finally {
    await into.close();
  }
}

async function makeDraft(
  root: ContainerRoot,
  directory: string,
  into: FileHandle,
  draft: ByteString,
  entry: LayerEntry,
  signal: AbortSignal,
): Promise<void> {
  const [uid, gid] = [root.idOnHost(entry.uid), root.idOnHost(entry.gid)];
  switch (entry.type) {
    case "file": {
      const flags = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW;
      const file = await open(nameIn(into, draft), flags, 0o600);
      try {
        for await (const chunk of entry.content as AsyncIterable<Uint8Array>) {
          signal.throwIfAborted();
          await file.writeFile(chunk);
        }
        // In this order: a new owner takes setuid away.
        await file.chown(uid, gid);
        await file.chmod(entry.mode);
        const time = entry.mtime.seconds + entry.mtime.nanoseconds / 1e9;
        await file.utimes(time, time);
      } finally {
        await file.close();
      }
      return;
    }
    case "symlink":
      await symlink(Buffer.from(entry.target, "latin1"), nameIn(into, draft));
      await lchown(nameIn(into, draft), uid, gid);
      return;
    case "hardlink": {
      const { parent, name } = split(entry.target);
      if (name === null) throw invalid(entry, "links to no file");
      const from = await root.open(below(directory, parent), O_DIRECTORY);
      try {
        await link(nameIn(from, name), nameIn(into, draft));
      } finally {
        await from.close();
      }
      return;
    }
    case "directory":
    case "fifo":
    case "device":
      throw invalid(entry, `is a ${entry.type}; files, directories and links can be written`);
  }
}

async function writeDirectory(
  root: ContainerRoot,
  into: FileHandle,
  name: ByteString,
  entry: LayerEntry,
): Promise<void> {
  await mkdir(nameIn(into, name), { mode: 0o700 }).catch((error: unknown) => {
    if (!hasCode(error, "EEXIST")) throw error;
  });
  // Through a symlink that stands in a directory's place goes only what is written below it, inside the root.
  const made = await open(nameIn(into, name), O_DIRECTORY | constants.O_NOFOLLOW).catch((error: unknown) => {
    if (hasCode(error, "ELOOP", "ENOTDIR")) return null;
    throw error;
  });
  if (made === null) {
    const there = await openName(into, name);
    const isLink = (await there?.stat())?.isSymbolicLink() ?? false;
    await there?.close();
    if (isLink) return;
    throw new BerthError("invalid_path", `${showBytes(entry.path)} is there and no directory.`);
  }
  try {
    await made.chown(root.idOnHost(entry.uid), root.idOnHost(entry.gid));
    await made.chmod(entry.mode);
  } finally {
    await made.close();
  }
}

/** The directory of these names below `directory`; those that are missing are made, for root and with mode 0755. */
async function makeDirectory(root: ContainerRoot, directory: string, names: readonly string[]): Promise<FileHandle> {
  const path = below(directory, names);
  try {
    return await root.open(path, O_DIRECTORY);
  } catch (error) {
    const name = names.at(-1);
    if (name === undefined || !(error instanceof BerthError) || error.code !== "file_not_found") throw error;
    const parent = await makeDirectory(root, directory, names.slice(0, -1));
    try {
      const made = nameIn(parent, Buffer.from(name).toString("latin1"));
      await mkdir(made, { mode: 0o755 });
      await lchown(made, root.idOnHost(0), root.idOnHost(0));
    } catch (failure) {
      if (!hasCode(failure, "EEXIST")) throw pathError(failure, path);
    } finally {
      await parent.close();
    }
    return root.open(path, O_DIRECTORY);
  }
}

function below(directory: string, names: readonly string[]): string {
  return [directory, ...names].join("/");
}

/** A tar's path as the names of its directories and its last name, which is null for the target directory itself. */
function split(path: ByteString): { parent: string[]; name: ByteString | null } {
  const names = path.split("/").filter((name) => name !== "" && name !== ".");
  if (names.includes("..")) throw new BerthError("invalid_archive", `${showBytes(path)} leads out of the directory.`);
  const name = names.at(-1) ?? null;
  return { parent: names.slice(0, -1).map(textOf), name };
}

/** Names of directories are given to the kernel as text. @throws BerthError `invalid_archive` when it is not UTF-8 */
function textOf(name: ByteString): string {
  const bytes = Buffer.from(name, "latin1");
  const text = bytes.toString("utf8");
  if (Buffer.from(text).equals(bytes)) return text;
  throw new BerthError("invalid_archive", `${showBytes(name)} is not UTF-8.`);
}

function invalid(entry: LayerEntry, what: string): BerthError {
  return new BerthError("invalid_archive", `${showBytes(entry.path)} ${what}.`);
}
