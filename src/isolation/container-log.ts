import { watch } from "node:fs";
import { type FileHandle, open, stat } from "node:fs/promises";

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

/** A line of conmon's k8s-file format: `TIME STREAM F|P TEXT`; null: not one (a torn write). */
export function parseLogLine(line: string): LogLine | null {
  const match = /^(\S+) (stdout|stderr) ([FP]) (.*)$/s.exec(line);
  if (match === null) return null;
  const [, at = "", stream, kind, text = ""] = match;
  return { at, stream: stream === "stderr" ? "stderr" : "stdout", text, partial: kind === "P" };
}

function selects(filter: LogFilter): (line: LogLine) => boolean {
  const since = filter.since === undefined ? Number.NEGATIVE_INFINITY : Date.parse(filter.since);
  const until = filter.until === undefined ? Number.POSITIVE_INFINITY : Date.parse(filter.until);
  return (line) => {
    if (!filter[line.stream]) return false;
    const at = Date.parse(line.at);
    return at >= since && at <= until;
  };
}

/** Yields complete lines appended to a file since the last call; knows when the monitor began a new file. */
class Tailer {
  readonly #path: string;
  #file: FileHandle | null = null;
  #inode = 0;
  #offset = 0;
  #rest: Buffer = Buffer.alloc(0);

  constructor(path: string) {
    this.#path = path;
  }

  async *lines(): AsyncGenerator<string> {
    const current = await stat(this.#path).catch(() => null);
    if (this.#file !== null && current !== null && current.ino !== this.#inode) {
      yield* this.#read();
      await this.close();
    }
    if (this.#file === null) {
      if (current === null) return;
      this.#file = await open(this.#path, "r");
      this.#inode = current.ino;
      this.#offset = 0;
      this.#rest = Buffer.alloc(0);
    }
    yield* this.#read();
  }

  async *#read(): AsyncGenerator<string> {
    const chunk = Buffer.allocUnsafe(65_536);
    for (;;) {
      const { bytesRead } = (await this.#file?.read(chunk, 0, chunk.length, this.#offset)) ?? { bytesRead: 0 };
      if (bytesRead === 0) return;
      this.#offset += bytesRead;
      const data = Buffer.concat([this.#rest, chunk.subarray(0, bytesRead)]);
      let start = 0;
      for (let end = data.indexOf(10, start); end >= 0; end = data.indexOf(10, start)) {
        yield data.toString("utf8", start, end);
        start = end + 1;
      }
      this.#rest = data.subarray(start);
    }
  }

  async close(): Promise<void> {
    await this.#file?.close();
    this.#file = null;
  }
}

/**
 * Reads a container's log, oldest first. With `follow` it goes on until `ended` says that nothing more is to come (asked
 * only when all that was written has been read) or the signal aborts.
 */
export async function* readLog(
  path: string,
  filter: LogFilter,
  follow: { ended: () => Promise<boolean>; signal: AbortSignal } | null,
): AsyncGenerator<LogLine> {
  const tailer = new Tailer(path);
  const wanted = selects(filter);
  try {
    let last: LogLine[] | null = filter.tail === undefined ? null : [];
    for (;;) {
      // Asked before reading: what was written before the end is then surely read.
      const ended = follow === null || follow.signal.aborted || (await follow.ended());
      for await (const text of tailer.lines()) {
        const line = parseLogLine(text);
        if (line === null || !wanted(line)) continue;
        if (last === null) yield line;
        else {
          last.push(line);
          if (last.length > (filter.tail ?? 0)) last.shift();
        }
      }
      if (last !== null) yield* last;
      last = null;
      if (ended) return;
      await changed(path, follow.signal);
    }
  } finally {
    await tailer.close();
  }
}

/** Resolves when the file changes, after a second at most (the end is no change of the file), or on abort. */
async function changed(path: string, signal: AbortSignal): Promise<void> {
  await new Promise<void>((resolve) => {
    const done = () => {
      clearTimeout(timer);
      watcher?.close();
      signal.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, 1000);
    signal.addEventListener("abort", done);
    let watcher: ReturnType<typeof watch> | null = null;
    try {
      watcher = watch(path, done);
      watcher.on("error", done);
    } catch {
      // Not there yet: the timer looks again.
    }
  });
}
