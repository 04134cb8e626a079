import { closeSync } from "node:fs";
import { Socket } from "node:net";
import { constants } from "node:os";
import { type ChildProcess, openPipe, spawn } from "../../isolation/apply/spawn.ts";
import { confined } from "./confined.ts";

/** The bare repository that git works in, and the host id that it runs as and that owns the directory. */
export interface GitPlace {
  repository: string;
  uid: number;
  /** Bytes of address space that it may have, when less will do than for a fetch. */
  addressBytes?: number;
}

/** What a tenant's repository may make git use: bytes of one file (a fetch is one pack), of address space; processes. */
const limits = { fileBytes: 4 * 2 ** 30, addressBytes: 4 * 2 ** 30, processes: 64 };

/** Kept of what git says on stderr, characters. */
const maxErrorText = 16_384;

/**
 * Nothing of the host's configuration, no prompt, no hook, no helper; no transport but http(s), no redirect (the address
 * that was checked is the one that is reached), no stalled transfer; one pack and one thread.
 */
const config = [
  "core.hooksPath=/dev/null",
  "credential.helper=",
  "protocol.version=2",
  "http.followRedirects=false",
  "http.lowSpeedLimit=1000",
  "http.lowSpeedTime=30",
  "fetch.unpackLimit=1",
  "fetch.recurseSubmodules=false",
  "maintenance.auto=false",
  "gc.auto=0",
  "pack.threads=1",
  "core.packedGitWindowSize=64m",
  "core.packedGitLimit=512m",
  "core.bigFileThreshold=16m",
  // Modes as a checkout has them.
  "tar.umask=0022",
];

/** A run of git: what it writes, which has to be read, and its end. */
export interface GitRun {
  output: Socket;
  /** Kills it if it still runs. */
  stop: () => void;
  ended: Promise<{ exitCode: number | null; stderr: string }>;
}

/**
 * Runs git on data of a tenant: as an id that owns nothing else, without capabilities, and in a process namespace of its
 * own, so that when it ends or is killed nothing that it started is left. Killed when the signal aborts.
 */
export function startGit(
  place: GitPlace,
  args: readonly string[],
  signal: AbortSignal,
  env: Readonly<Record<string, string>> = {},
): GitRun {
  signal.throwIfAborted();
  const stdout = openPipe();
  const stderr = openPipe();
  const { uid, addressBytes = limits.addressBytes } = place;
  const prefix = confined({ uid, limits: { ...limits, addressBytes }, network: true });
  let child: ChildProcess;
  try {
    child = spawn({
      file: prefix.file,
      args: [...prefix.args, "/usr/bin/git", ...config.flatMap((setting) => ["-c", setting]), ...args],
      env: {
        PATH: "/usr/bin:/bin",
        HOME: "/nonexistent",
        LC_ALL: "C",
        GIT_DIR: place.repository,
        GIT_CONFIG_NOSYSTEM: "1",
        GIT_CONFIG_GLOBAL: "/dev/null",
        GIT_ATTR_NOSYSTEM: "1",
        GIT_TERMINAL_PROMPT: "0",
        GIT_ALLOW_PROTOCOL: "http:https",
        ...env,
      },
      fds: { 1: stdout.write, 2: stderr.write },
    });
  } catch (error) {
    closeSync(stdout.read);
    closeSync(stderr.read);
    throw error;
  } finally {
    closeSync(stdout.write);
    closeSync(stderr.write);
  }
  const output = new Socket({ fd: stdout.read, readable: true, writable: false });
  const stop = () => child.kill(constants.signals.SIGKILL);
  signal.addEventListener("abort", stop);
  const errors = readText(stderr.read);
  const ended = child.ended.then(async ({ exitCode }) => {
    signal.removeEventListener("abort", stop);
    return { exitCode, stderr: await errors };
  });
  return { output, stop, ended };
}

async function readText(fd: number): Promise<string> {
  const socket = new Socket({ fd, readable: true, writable: false });
  let text = "";
  for await (const chunk of socket) text = (text + (chunk as Buffer).toString("latin1")).slice(0, maxErrorText);
  return text;
}
