import { execFileSync } from "node:child_process";
import { randomBytes, randomInt } from "node:crypto";
import {
  closeSync,
  existsSync,
  fstatSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { flock, hasCode, LOCK_EX, LOCK_NB } from "../../src/isolation/apply/ffi.ts";
import { detachMount } from "../../src/isolation/apply/mount-api.ts";
import { mountsBelow } from "../../src/isolation/apply/mount-table.ts";
import { identify, signalProcess, waitGone } from "../../src/isolation/apply/process.ts";
import type { SandboxConfig } from "../../src/isolation/parts.ts";
import { Sandboxes } from "../../src/isolation/sandbox.ts";

/**
 * What tests and benchmarks have of the machine, so that several of them can run beside each other. Each thing is a file
 * here that its process has locked: the kernel lets go of the lock when the process ends, however it ends. A file that
 * nobody has locked was left by a process that was killed; the next run removes it, and what it tells of.
 */
const uid = process.getuid?.() ?? 0;
const claims = uid === 0 ? "/run/berth-tests" : join(tmpdir(), `berth-tests-${uid}`);
const SIGKILL = 9;

/** Locks the file for as long as this process lives, or until the descriptor is closed; null: another has it. */
function claim(path: string): number | null {
  mkdirSync(claims, { recursive: true, mode: 0o700 });
  for (;;) {
    const fd = openSync(path, "a+", 0o600);
    try {
      flock(fd, LOCK_EX | LOCK_NB);
    } catch (error) {
      closeSync(fd);
      if (hasCode(error, "EAGAIN")) return null;
      throw error;
    }
    // Whoever had it before may have removed it in between.
    if (fstatSync(fd).nlink > 0) return fd;
    closeSync(fd);
  }
}

/** A number below `count` that no other process of the machine has for this kind of thing while this one lives. */
export function claimNumber(kind: string, count: number, isFree: (number: number) => boolean = () => true): number {
  const start = randomInt(count);
  for (let step = 0; step < count; step++) {
    const number = (start + step) % count;
    const fd = claim(join(claims, `${kind}-${number}`));
    if (fd === null) continue;
    if (isFree(number)) return number;
    closeSync(fd);
  }
  throw new Error(`none of ${count} is free (${claims}/${kind}-*)`);
}

/** Ports that are nobody else's; `last` is the last of them. */
export interface PortRange {
  first: number;
  last: number;
}

const rangeSize = 100;
const firstPort = 20_000;
/** The kernel gives the ports behind it to whoever asks for any (ip_local_port_range). */
const portsEnd = 32_768;

/** A hundred ports that nothing listens on, TCP or UDP, and that no other test gets. */
export function claimPorts(): PortRange {
  const rangeOf = (number: number): PortRange => {
    const first = firstPort + number * rangeSize;
    return { first, last: first + rangeSize - 1 };
  };
  const taken = boundPorts();
  const isFree = (number: number): boolean => {
    const { first, last } = rangeOf(number);
    return !taken.some((port) => port >= first && port <= last);
  };
  return rangeOf(claimNumber("ports", Math.floor((portsEnd - firstPort) / rangeSize), isFree));
}

let single: PortRange | null = null;

/** A port of this process's own that nothing listens on, for a program that can't be told to take any. */
export function freePort(): number {
  if (single === null || single.first > single.last) single = claimPorts();
  return single.first++;
}

/** Ports of listening TCP sockets and of all UDP sockets (proc(5), net/tcp). */
function boundPorts(): number[] {
  return ["tcp", "tcp6", "udp", "udp6"].flatMap((table) => {
    const path = `/proc/net/${table}`;
    if (!existsSync(path)) return [];
    return readFileSync(path, "utf8")
      .split("\n")
      .slice(1)
      .flatMap((line) => {
        const [, local = "", , state] = line.trim().split(/\s+/);
        const bound = local !== "" && (table.startsWith("udp") || state === "0A");
        return bound ? [Number.parseInt(local.slice(local.lastIndexOf(":") + 1), 16)] : [];
      });
  });
}

/** argv that runs a program which the kernel kills when this process ends. */
export function dyingWithUs(argv: readonly string[]): string[] {
  return ["/usr/bin/setpriv", "--pdeathsig", "KILL", "--", ...argv];
}

/** What a test has besides memory. */
export interface Footprint {
  /** Its processes have this path among their arguments or in their environment. */
  directory: string;
  sandboxes?: Pick<SandboxConfig, "instance" | "runDir" | "dataDir" | "runtime">;
  /** A name of `ip netns`. */
  networkNamespace?: string;
}

/** A footprint that is removed by its own process, or else by a later run. */
export class Owned {
  readonly footprint: Footprint;
  readonly #path: string;
  readonly #fd: number;

  private constructor(footprint: Footprint, path: string, fd: number) {
    this.footprint = footprint;
    this.#path = path;
    this.#fd = fd;
  }

  /** To be called before there is any of it. */
  static record(footprint: Footprint): Owned {
    // It will be removed as it is named here.
    if (!/^\/.+\/berth-[\w-]+$/.test(footprint.directory)) throw new Error(`${footprint.directory}: not a test's own`);
    for (;;) {
      const path = join(claims, `footprint-${randomBytes(8).toString("hex")}`);
      const fd = claim(path);
      if (fd === null) continue;
      writeSync(fd, JSON.stringify(footprint));
      return new Owned(footprint, path, fd);
    }
  }

  /** Makes a directory with nothing else to it. @param name what the directory's name begins with */
  static directory(name: string): Owned {
    return Owned.record({ directory: mkdtempSync(join(tmpdir(), name)) });
  }

  /** What a process left that was killed; null: it lives, or it had nothing but the number. */
  static adopt(path: string): Owned | null {
    const fd = claim(path);
    if (fd === null) return null;
    const text = readFileSync(path, "utf8");
    // A number's file is empty.
    if (text !== "") return new Owned(JSON.parse(text) as Footprint, path, fd);
    rmSync(path);
    closeSync(fd);
    return null;
  }

  /** Removes all of it, in whatever state it is; the test's own processes have ended. */
  async remove(): Promise<void> {
    const { directory, sandboxes, networkNamespace } = this.footprint;
    if (sandboxes !== undefined) {
      await Sandboxes.down(sandboxes, 0);
      removeTree(sandboxes.runDir);
    }
    if (networkNamespace !== undefined && existsSync(`/run/netns/${networkNamespace}`))
      execFileSync("ip", ["netns", "del", networkNamespace]);
    removeTree(directory);
    this.forget();
  }

  /** Somebody else has removed it. */
  forget(): void {
    rmSync(this.#path, { force: true });
    closeSync(this.#fd);
  }

  /** Gives it up as it is, for the next run to try. */
  leave(): void {
    closeSync(this.#fd);
  }
}

/** Removes a directory, and never what is mounted in it. */
function removeTree(directory: string): void {
  for (const { path } of mountsBelow(directory).toReversed()) detachMount(path);
  const [left] = mountsBelow(directory);
  if (left !== undefined) throw new Error(`${left.path} is still mounted`);
  rmSync(directory, { recursive: true, force: true, maxRetries: 5 });
}

/** Removes what tests and benchmarks that were killed have left; those that still run keep theirs. */
export async function removeKilled(): Promise<void> {
  for (const name of existsSync(claims) ? readdirSync(claims) : []) {
    const left = Owned.adopt(join(claims, name));
    if (left === null) continue;
    try {
      await endProcesses(left.footprint.directory);
      await left.remove();
    } catch (error) {
      left.leave();
      console.error(`What a killed run left in ${left.footprint.directory} could not be removed: ${String(error)}`);
    }
  }
}

/** Kills the processes that have the path among their arguments or in their environment, and those that they start meanwhile. */
async function endProcesses(directory: string): Promise<void> {
  for (;;) {
    const found = readdirSync("/proc").flatMap((name) => {
      const id = /^\d+$/.test(name) && name !== String(process.pid) && names(name, directory) ? identify(+name) : null;
      return id ?? [];
    });
    if (found.length === 0) return;
    for (const id of found) signalProcess(id, SIGKILL);
    const gone = await Promise.all(found.map((id) => waitGone(id, 10_000)));
    if (gone.includes(false)) throw new Error("a process of it does not end");
  }
}

function names(pid: string, text: string): boolean {
  return ["cmdline", "environ"].some((file) => {
    try {
      return readFileSync(`/proc/${pid}/${file}`, "latin1").includes(text);
    } catch {
      return false;
    }
  });
}

/** vitest's globalSetup. */
export default removeKilled;
