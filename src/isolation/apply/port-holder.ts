import { readdir, readFile, readlink } from "node:fs/promises";

/**
 * Which process of this host has a port: `nginx (pid 812)`. null when it can't be seen, as with a process of another
 * pid namespace or a socket of the kernel. Reads all of /proc: only for the message of a conflict.
 */
export async function portHolder(protocol: "tcp" | "udp", port: number): Promise<string | null> {
  const inodes = new Set<string>();
  for (const table of [protocol, `${protocol}6`]) {
    const text = await readFile(`/proc/net/${table}`, "utf8").catch(() => "");
    for (const line of text.split("\n").slice(1)) {
      const [, local = "", , state, , , , , , inode = ""] = line.trim().split(/\s+/);
      const listening = protocol === "udp" || state === "0A";
      if (listening && Number.parseInt(local.slice(local.lastIndexOf(":") + 1), 16) === port) inodes.add(inode);
    }
  }
  inodes.delete("0");
  if (inodes.size === 0) return null;
  for (const pid of (await readdir("/proc")).filter((name) => /^\d+$/.test(name))) {
    const fds = await readdir(`/proc/${pid}/fd`).catch((): string[] => []);
    for (const fd of fds) {
      const [, inode = ""] = /^socket:\[(\d+)\]$/.exec(await readlink(`/proc/${pid}/fd/${fd}`).catch(() => "")) ?? [];
      if (!inodes.has(inode)) continue;
      const name = (await readFile(`/proc/${pid}/comm`, "utf8").catch(() => "a process")).trim();
      return `${name} (pid ${pid})`;
    }
  }
  return null;
}
