import { randomUUID } from "node:crypto";
import { mkdir, rmdir } from "node:fs/promises";
import type { Mounts } from "../../isolation/apply/mounts.ts";
import type { FileTree } from "./file-entry.ts";
import { RootView } from "./root-view.ts";

/** Mounts layers read-only below `directory` (on a filesystem that only this worker uses) for as long as `use` runs. */
export async function withMountedRoot<T>(
  mounts: Pick<Mounts, "mountView" | "unmountRootfs">,
  directory: string,
  layers: readonly string[],
  use: (root: FileTree) => Promise<T>,
): Promise<T> {
  const target = `${directory}/${randomUUID()}`;
  await mkdir(target, { recursive: true, mode: 0o700 });
  try {
    mounts.mountView(layers, target);
    return await use(new RootView(target));
  } finally {
    await mounts.unmountRootfs(target);
    await rmdir(target);
  }
}
