import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { createInterface, type Interface } from "node:readline";
import type { Readable } from "node:stream";
import { freePort, Owned } from "./ownership.ts";

/** Debian's docker-registry on a free port, with its own directory. */
export interface TestRegistry {
  /** `<address>:<port>`. */
  host: string;
  /** Where it keeps its blobs. */
  blobs: string;
  /** Its access log so far: every request, in the order in which they were answered. */
  requests: () => Promise<LoggedRequest[]>;
  stop: () => Promise<void>;
}

export interface LoggedRequest {
  method: string;
  /** Path and query. */
  target: string;
  status: number;
}

/**
 * @param htpasswd Lines of a bcrypt htpasswd file; null: no user is asked for
 * @param address where it listens: an IPv4 address of this machine
 */
export async function startRegistry(htpasswd: string | null = null, address = "127.0.0.1"): Promise<TestRegistry> {
  const owned = Owned.directory("berth-registry-");
  const { directory } = owned.footprint;
  const port = freePort();
  const host = `${address}:${String(port)}`;
  const users = join(directory, "htpasswd");
  if (htpasswd !== null) await writeFile(users, htpasswd);
  const config = {
    version: 0.1,
    log: { level: "error", accesslog: { disabled: false } },
    storage: { filesystem: { rootdirectory: join(directory, "data") }, delete: { enabled: true } },
    http: { addr: host },
    ...(htpasswd === null ? {} : { auth: { htpasswd: { realm: "berth-test", path: users } } }),
  };
  await writeFile(join(directory, "config.yml"), JSON.stringify(config));
  const child = spawn("/usr/bin/docker-registry", ["serve", join(directory, "config.yml")], {
    stdio: ["ignore", "pipe", "ignore"],
  });
  const log = new AccessLog(child.stdout);
  const base = `http://${host}`;
  const stop = async (): Promise<void> => {
    await end(child);
    await owned.remove();
  };
  try {
    await answers(`${base}/v2/`, child);
  } catch (error) {
    await stop();
    throw error;
  }
  return { host, blobs: join(directory, "data/docker/registry/v2/blobs"), requests: () => log.read(base), stop };
}

/** The access log that docker-registry writes to its stdout, in Apache's combined format. */
class AccessLog {
  readonly #lines: Interface;
  readonly #requests: LoggedRequest[] = [];
  #marks = 0;

  constructor(stdout: Readable) {
    this.#lines = createInterface({ input: stdout });
    this.#lines.on("line", (line) => {
      const [, method, target, status] = /"([A-Z]+) (\S+) HTTP\/1\.1" (\d{3}) /.exec(line) ?? [];
      if (method === undefined || target === undefined) return;
      this.#requests.push({ method, target, status: Number(status) });
    });
  }

  /** A line may be written after its request was answered, so a request of ours has to have come through first. */
  async read(base: string): Promise<LoggedRequest[]> {
    const mark = `/v2/?mark=${String(++this.#marks)}`;
    await (await fetch(`${base}${mark}`)).arrayBuffer();
    while (!this.#requests.some(({ target }) => target === mark)) await once(this.#lines, "line");
    return this.#requests.filter(({ target }) => !target.startsWith("/v2/?mark="));
  }
}

/** Asks until there is an answer, which is the only sign that this program gives. */
async function answers(url: string, child: ChildProcess): Promise<void> {
  for (const deadline = Date.now() + 10_000; Date.now() < deadline; ) {
    if (child.exitCode !== null) throw new Error(`docker-registry ended with ${String(child.exitCode)}`);
    const response = await fetch(url).catch(() => null);
    if (response !== null) {
      await response.arrayBuffer();
      return;
    }
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  throw new Error("docker-registry does not answer");
}

async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const ended = once(child, "exit");
  child.kill("SIGKILL");
  await ended;
}
