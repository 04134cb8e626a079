import { readFileSync } from "node:fs";

/** How long a child that its supervisor has left behind may take to end by itself. */
const patienceMs = 10_000;

/**
 * Waits until the process of an earlier start has ended, whose pid is in the file: a child whose supervisor was killed
 * ends by itself, but not at once, and as long as it lives its port and its locks are taken. One that does not end is
 * killed. `script`, the end of its path, tells it from another program that has the
 * pid by now.
 */
export async function awaitPredecessor(pidFile: string, script: string): Promise<void> {
  const pid = Number(read(pidFile));
  if (pid === 0) return;
  const deadline = performance.now() + patienceMs;
  while (
    read(`/proc/${String(pid)}/cmdline`)
      .split("\0")
      .includes(script)
  ) {
    if (performance.now() > deadline) process.kill(pid, "SIGKILL");
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

function read(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return "";
  }
}
