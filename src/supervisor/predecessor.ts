import { readFileSync, writeFileSync } from "node:fs";

/** How long a child that its supervisor has left behind may take to end by itself. */
const patienceMs = 10_000;

/** Keeps in the file which process a role is, for a supervisor that comes after this one was killed. */
export function recordProcess(file: string, pid: number): void {
  writeFileSync(file, `${String(pid)} ${startTime(pid)}\n`);
}

/**
 * Waits until the process that the file tells of has ended: a child whose supervisor was killed ends by itself, but not
 * at once, and as long as it lives its port and its locks are taken. One that does not end is killed.
 */
export async function awaitPredecessor(file: string): Promise<void> {
  const [pid = "", time = ""] = read(file).trim().split(" ");
  const deadline = performance.now() + patienceMs;
  while (time !== "" && startTime(Number(pid)) === time) {
    if (performance.now() > deadline) process.kill(Number(pid), "SIGKILL");
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** When the process started, in clock ticks since boot (proc(5), stat, 22): with the pid, it is that process alone. */
function startTime(pid: number): string {
  const text = read(`/proc/${String(pid)}/stat`);
  // The second field is the program's name, which may hold spaces and parentheses; one that has ended is Z or X.
  const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
  return fields[0] === "Z" || fields[0] === "X" ? "" : (fields[19] ?? "");
}

function read(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return "";
  }
}
