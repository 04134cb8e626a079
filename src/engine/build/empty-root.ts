import { directoryEntry } from "./context-tree.ts";
import type { FileTree } from "./file-entry.ts";

/** The root of `FROM scratch`: an empty directory. */
export const emptyRoot: FileTree = {
  get: (path) => Promise.resolve(path === "/" ? directoryEntry : null),
  list: () => Promise.resolve([]),
  read: () => {
    throw new Error("an empty root has no files");
  },
};
