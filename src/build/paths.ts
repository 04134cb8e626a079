/** A path within an image's root, without `.`, `..` and doubled slashes; `..` stops at the root. Always absolute. */
export function cleanPath(path: string): string {
  const parts: string[] = [];
  for (const part of path.split("/")) {
    if (part === "..") parts.pop();
    else if (part !== "" && part !== ".") parts.push(part);
  }
  return `/${parts.join("/")}`;
}

/** `path`, taken as relative to `directory` unless it is absolute. */
export function resolvePath(directory: string, path: string): string {
  return cleanPath(path.startsWith("/") ? path : `${directory}/${path}`);
}

/** Whether a destination as written names a directory: `x/`, `x/.`, `.` or `..`. */
export function namesDirectory(path: string): boolean {
  return /(?:^|\/)\.{0,2}$/.test(path);
}

/** Whether the path is, or is below, a directory that the runtime fills (`/proc`, `/sys`) and not the image. */
export function isKernelPath(path: string): boolean {
  return /^\/(?:proc|sys)(?:\/|$)/.test(path);
}
