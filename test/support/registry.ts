import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** Debian's docker-registry on a free port of loopback, with its own directory. */
export interface TestRegistry {
  /** `127.0.0.1:<port>`. */
  host: string;
  stop: () => Promise<void>;
}

/** @param htpasswd Lines of a bcrypt htpasswd file; null: no user is asked for. */
export async function startRegistry(htpasswd: string | null = null): Promise<TestRegistry> {
  const directory = await mkdtemp(join(tmpdir(), "berth-registry-"));
  const port = await freePort();
  const users = join(directory, "htpasswd");
  if (htpasswd !== null) await writeFile(users, htpasswd);
  const config = {
    version: 0.1,
    log: { level: "error", accesslog: { disabled: true } },
    storage: { filesystem: { rootdirectory: join(directory, "data") }, delete: { enabled: true } },
    http: { addr: `127.0.0.1:${String(port)}` },
    ...(htpasswd === null ? {} : { auth: { htpasswd: { realm: "berth-test", path: users } } }),
  };
  await writeFile(join(directory, "config.yml"), JSON.stringify(config));
  const child = spawn("/usr/bin/docker-registry", ["serve", join(directory, "config.yml")], { stdio: "ignore" });
  const stop = async (): Promise<void> => {
    await end(child);
    await rm(directory, { recursive: true, force: true });
  };
  try {
    await answers(`http://127.0.0.1:${String(port)}/v2/`, child);
  } catch (error) {
    await stop();
    throw error;
  }
  return { host: `127.0.0.1:${String(port)}`, stop };
}

export async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  server.close();
  await once(server, "close");
  if (address === null || typeof address === "string") throw new Error("no port");
  return address.port;
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
