import { readFileSync } from "node:fs";

/** A mount of this process's mount namespace. */
export interface MountEntry {
  path: string;
  type: string;
  source: string;
}

/** All mounts at or below a directory, in the order they were made (proc(5), mountinfo). */
export function mountsBelow(directory: string): MountEntry[] {
  const found: MountEntry[] = [];
  for (const line of readFileSync("/proc/self/mountinfo", "utf8").split("\n")) {
    const [before = "", after = ""] = line.split(" - ");
    const path = unescape(before.split(" ")[4] ?? "");
    if (path !== directory && !path.startsWith(`${directory}/`)) continue;
    const [type = "", source = ""] = after.split(" ");
    found.push({ path, type, source: unescape(source) });
  }
  return found;
}

/** Spaces, tabs, newlines and backslashes come as octal escapes. */
function unescape(text: string): string {
  return text.replace(/\\(\d{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)));
}
