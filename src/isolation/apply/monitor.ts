import { closeSync, readFileSync, statSync, writeSync } from "node:fs";
import { Socket } from "node:net";
import { BerthError } from "../../core/errors.ts";
import type { SlotLayout } from "../plan/layout.ts";
import { hasCode } from "./ffi.ts";
import { type Asked, type Runtime, runtimeError } from "./runtime.ts";
import { openPipe, spawn } from "./spawn.ts";

/** Bytes of a container's log; at the limit conmon begins anew, so that a flood fills nothing. */
const logLimit = 16 * 2 ** 20;

/** What a monitor is started with; all of it is fixed before the container's config is known. */
export interface MonitorOptions {
  conmon: string;
  runtime: Runtime;
  exits: string;
  paths: SlotLayout;
  tty: boolean;
  stdin: boolean;
}

/** A monitor (conmon) that is ready to create its container, and waits for a byte. */
export interface ParkedMonitor {
  pid: number;
  /** Resolves when it is gone, for whatever reason. */
  ended: Promise<unknown>;
  /**
   * Lets it run the runtime's `create` on the bundle. Returns the pid of the container's first process, which waits to
   * be started. `asked` is the bundle's process, for errors. @throws BerthError for what the runtime complains of.
   */
  create: (asked: Asked) => Promise<number>;
  /** Ends it unused. */
  discard: () => void;
}

/**
 * Starts a monitor and leaves it waiting (`_OCI_STARTPIPE`), so that its own start-up (2.4 ms) is over when a request
 * comes. It outlives this process: it holds the container's stdio, writes its log and, at the end, its exit code.
 * A monitor whose worker dies first reads an end of file, goes on without a config, and ends.
 */
export function parkMonitor(options: MonitorOptions): ParkedMonitor {
  const start = openPipe();
  const sync = openPipe();
  let child: ReturnType<typeof spawn>;
  try {
    child = spawn({
      file: options.conmon,
      args: monitorArguments(options),
      env: { PATH: "/usr/sbin:/usr/bin:/sbin:/bin", _OCI_STARTPIPE: "3", _OCI_SYNCPIPE: "4" },
      fds: { 3: start.read, 4: sync.write },
    });
  } catch (error) {
    closeSync(start.write);
    closeSync(sync.read);
    throw error;
  } finally {
    closeSync(start.read);
    closeSync(sync.write);
  }
  return {
    pid: child.pid,
    ended: child.ended,
    create: async (asked) => {
      const answer = readAnswer(sync.read);
      writeSync(start.write, "\0");
      closeSync(start.write);
      return createdPid(await answer, asked);
    },
    discard: () => {
      child.kill(9);
      closeSync(start.write);
      closeSync(sync.read);
    },
  };
}

/** conmon(8). `--sync`: it stays our child, so its pid is known at once and its end noticed. */
function monitorArguments({ runtime, exits, paths, tty, stdin }: MonitorOptions): string[] {
  return [
    "--sync",
    "--api-version=1",
    `--cid=${paths.name}`,
    `--cuuid=${paths.name}`,
    `--name=${paths.name}`,
    `--runtime=${runtime.file}`,
    ...runtime.args.map((argument) => `--runtime-arg=${argument}`),
    `--bundle=${paths.dir}`,
    `--container-pidfile=${paths.pidFile}`,
    `--exit-dir=${exits}`,
    `--log-path=k8s-file:${paths.log}`,
    `--log-size-max=${String(logLimit)}`,
    // The last lines of a log need not survive a power cut; waiting for the disk at each exit would cost every stop.
    "--no-sync-log",
    "--full-attach",
    "--log-level=error",
    ...(tty ? ["--terminal"] : []),
    ...(stdin ? ["--stdin", "--leave-stdin-open"] : []),
  ];
}

/** The first line of the sync pipe, or what came before its end. */
function readAnswer(fd: number): Promise<string> {
  const socket = new Socket({ fd, readable: true, writable: false });
  let text = "";
  return new Promise((resolve) => {
    const done = (): void => {
      socket.destroy();
      resolve(text);
    };
    socket.on("data", (chunk) => {
      text += chunk.toString();
      if (text.includes("\n")) done();
    });
    socket.on("error", done);
    socket.on("close", done);
  });
}

/** conmon answers `{"data": <pid>}`, or `{"data": -1, "message": <the runtime's stderr>}`. */
function createdPid(answer: string, asked: Asked): number {
  let parsed: { data?: unknown; message?: unknown };
  try {
    parsed = JSON.parse(answer) as typeof parsed;
  } catch (cause) {
    throw new BerthError("start_failed", "The container's monitor ended before the container was created.", { cause });
  }
  if (typeof parsed.data === "number" && parsed.data > 0) return parsed.data;
  throw runtimeError(typeof parsed.message === "string" ? parsed.message : "the runtime gave no reason", asked);
}

/** What a monitor left about a finished run: null code when it could not tell. */
export interface ExitNote {
  exitCode: number | null;
  finishedAt: Date;
}

/** null: the run has not ended, or its monitor could not say so. */
export function readExit(path: string): ExitNote | null {
  try {
    const code = Number(readFileSync(path, "utf8"));
    return { exitCode: Number.isInteger(code) && code >= 0 ? code : null, finishedAt: statSync(path).mtime };
  } catch (error) {
    if (hasCode(error, "ENOENT")) return null;
    throw error;
  }
}
