import { noXattrs } from "../../image/layer-entry.ts";
import type { FileTree } from "./file-entry.ts";

/** The root of `FROM scratch`: an empty directory. */
export const emptyRoot: FileTree = {
  get: (path) =>
    Promise.resolve(
      path === "/"
        ? {
            type: "directory",
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: { seconds: 0, nanoseconds: 0 },
            size: 0,
            target: "",
            xattrs: noXattrs,
          }
        : null,
    ),
  list: () => Promise.resolve([]),
  read: () => {
    throw new Error("an empty root has no files");
  },
};
