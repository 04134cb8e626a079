import { watch } from "node:fs";
import { LogFile } from "./log-file.ts";

/** One line of a container's log. `partial`: the monitor split a long line here. */
export interface LogLine {
  at: string;
  stream: "stdout" | "stderr";
  text: string;
  partial: boolean;
}

/** Which lines to read. `tail`: only that many of the last; times in RFC 3339. */
export interface LogFilter {
  tail?: number;
  since?: string;
  until?: string;
  stdout: boolean;
  stderr: boolean;
}

/** How a log is followed. */
export interface Follow {
  /** Whether nothing more is to come; asked only when all that was written has been read. */
  ended: () => Promise<boolean>;
  signal: AbortSignal;
  /**
   * Calls back when what writes the log has begun or ended, until the returned function is called. Both are no change of
   * the file; without it they are noticed within a second.
   */
  onChange?: (look: () => void) => () => void;
}

/** A line of conmon's k8s-file format: `TIME STREAM F|P TEXT`; null: not one (a torn write). */
export function parseLogLine(line: string): LogLine | null {
  const match = /^(\S+) (stdout|stderr) ([FP]) (.*)$/s.exec(line);
  if (match === null) return null;
  const [, at = "", stream, kind, text = ""] = match;
  return { at, stream: stream === "stderr" ? "stderr" : "stdout", text, partial: kind === "P" };
}

/** Parses a line; null: not one, or not one that the filter lets through. */
function selector(filter: LogFilter): (text: string) => LogLine | null {
  const since = filter.since === undefined ? Number.NEGATIVE_INFINITY : Date.parse(filter.since);
  const until = filter.until === undefined ? Number.POSITIVE_INFINITY : Date.parse(filter.until);
  return (text) => {
    const line = parseLogLine(text);
    if (line === null || !filter[line.stream]) return null;
    const at = Date.parse(line.at);
    return at >= since && at <= until ? line : null;
  };
}

/**
 * Reads a container's log, oldest first. With `follow` it goes on until `ended` says that nothing more is to come or the
 * signal aborts.
 */
export async function* readLog(path: string, filter: LogFilter, follow: Follow | null): AsyncGenerator<LogLine> {
  const file = new LogFile(path);
  const wanted = selector(filter);
  try {
    if (filter.tail !== undefined) await file.skipToLast(filter.tail, (text) => wanted(text) !== null);
    for (;;) {
      // Asked and watched for before reading: what was written before the end is then surely read, and what is written
      // behind the reader's back is noticed.
      const change = follow === null ? null : changed(path, follow);
      const ended = follow === null || follow.signal.aborted || (await follow.ended());
      for await (const text of file.lines()) {
        const line = wanted(text);
        if (line !== null) yield line;
      }
      if (ended) return;
      await change;
    }
  } finally {
    await file.close();
  }
}

/** Resolves when the file changes, or what writes it, after a second at most, or on abort. */
async function changed(path: string, { signal, onChange }: Follow): Promise<void> {
  await new Promise<void>((resolve) => {
    const done = () => {
      clearTimeout(timer);
      watcher?.close();
      unsubscribe?.();
      signal.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, 1000);
    signal.addEventListener("abort", done);
    const unsubscribe = onChange?.(done);
    let watcher: ReturnType<typeof watch> | null = null;
    try {
      watcher = watch(path, done);
      watcher.on("error", done);
    } catch {
      // Not there yet.
    }
  });
}
