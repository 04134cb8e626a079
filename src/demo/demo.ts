import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { archive, type ContextFile, filesOf } from "./archive.ts";
import { Client, Refused } from "./client.ts";

/** What the demo needs to know; it talks to Berth by the public API alone. */
export interface DemoOptions {
  url: string;
  token: string;
  /** File that holds the token; null: the user knows it. */
  tokenFile: string | null;
  clone: string;
  /** The port of the first instance; the second's is the next. */
  firstPort: number;
  lastPort: number;
  say: (line: string) => void;
}

interface Job {
  id: string;
  status: string;
  error: { code: string; message: string } | null;
}
type Build = Job & { steps: unknown[] };
interface Container {
  id: string;
  status: string;
  reason: string | null;
  detail: string | null;
  ports: { endpoint: string }[];
}

const baseImage = "busybox:1.36";
/** So long a registry may take before the base image is made from what the host has, in seconds. */
const pullSeconds = 5;
const settleSeconds = 100;
const busyboxPaths = ["/usr/bin/busybox", "/bin/busybox"];

/**
 * Does the main job on an empty database and prints what it took: a base image, a build of examples/web, two instances
 * on two ports, each answering. On a database where anything has been built or run it does nothing.
 * @throws Error that says which step failed and why
 */
export async function runDemo(options: DemoOptions): Promise<void> {
  const { url, token, say } = options;
  const client = new Client(url, token);
  for (const noun of ["builds", "images", "containers"]) {
    if ((await client.get<{ items: unknown[] }>(`/v1/${noun}?limit=1`)).items.length > 0) return;
  }
  say("First start, so here is the main job once, measured:");
  await timed(say, () => provideBase(client));
  await timed(say, async () => {
    const { steps } = await build(client, filesOf(join(options.clone, "examples/web")), "web:1");
    return `built examples/web as web:1, ${String(steps.length)} steps`;
  });
  let port = options.firstPort;
  for (const name of ["web-1", "web-2"]) {
    await timed(say, async () => {
      const wanted = port;
      const started = await startOnFreePort(client, name, port, options.lastPort);
      port = started.port + 1;
      const taken = started.port === wanted ? "" : ` (port ${String(wanted)} is taken)`;
      await answers(started.url);
      return `${name} answers on ${started.url}${taken}`;
    });
  }
  say(`Three things to try${options.tokenFile === null ? "" : ` (the token is in ${options.tokenFile})`}:`);
  say(
    `  auth="Authorization: Bearer ${options.tokenFile === null ? "$BERTH_ADMIN_TOKEN" : `$(cat ${options.tokenFile})`}"`,
  );
  say(`  curl -H "$auth" ${url}/v1/containers/web-1/logs`);
  say(`  curl -H "$auth" ${url}/v1/containers/web-1/exec --json '{"command": ["id"]}'`);
  say(`  curl -H "$auth" ${url}/v1/containers --json '{"image": "web:1", "ports": [{"containerPort": 8080}]}'`);
}

async function timed(say: (line: string) => void, work: () => Promise<string>): Promise<void> {
  const begin = performance.now();
  const done = await work();
  say(`  ${((performance.now() - begin) / 1000).toFixed(2).padStart(5)} s  ${done}`);
}

/** Pulls the base image; without a registry in reach it is built from the host's static busybox. */
async function provideBase(client: Client): Promise<string> {
  const pull = await client.post<Job>("/v1/images/pull", { reference: baseImage }, pullSeconds);
  if (pull.status === "succeeded") return `pulled ${baseImage} from its registry`;
  if (pull.status !== "failed") await client.post(`/v1/jobs/${pull.id}/cancel`, {}, pullSeconds);
  const busybox = busyboxPaths.find((path) => existsSync(path));
  if (busybox === undefined) throw new Error(`${baseImage} can't be pulled, and there is no busybox on this host`);
  const dockerfile = 'FROM scratch\nCOPY busybox /bin/\nRUN ["/bin/busybox", "--install", "-s", "/bin"]\n';
  await build(
    client,
    [
      { path: "Dockerfile", mode: 0o644, content: Buffer.from(dockerfile) },
      { path: "busybox", mode: 0o755, content: readFileSync(busybox) },
    ],
    baseImage,
  );
  return `made ${baseImage} from this host's busybox, as no registry was in reach`;
}

async function build(client: Client, files: readonly ContextFile[], tag: string): Promise<Build> {
  const path = `/v1/builds?tag=${encodeURIComponent(tag)}`;
  const done = await client.post<Build>(path, await archive(files), settleSeconds);
  if (done.status !== "succeeded") throw new Error(`the build of ${tag} ${done.status}: ${done.error?.message ?? ""}`);
  return done;
}

/** Starts an instance on the first port, from `from` on, that neither Berth nor another process of the host has. */
async function startOnFreePort(
  client: Client,
  name: string,
  from: number,
  to: number,
): Promise<{ url: string; port: number }> {
  for (let port = from; port <= to; port++) {
    const container = await create(client, name, port);
    if (container?.status === "running") {
      return { url: `http://${container.ports[0]?.endpoint ?? ""}`, port };
    }
    if (container !== null) {
      await client.delete(`/v1/containers/${container.id}?force=true`, settleSeconds);
      if (container.reason !== "host_port_in_use") {
        throw new Error(`${name} is ${container.status}: ${container.detail ?? container.reason ?? ""}`);
      }
    }
  }
  throw new Error(`no port from ${String(from)} to ${String(to)} is free`);
}

/** null: a container of Berth has the port. */
async function create(client: Client, name: string, hostPort: number): Promise<Container | null> {
  const body = {
    image: "web:1",
    name,
    // Shown by its page.
    hostname: name,
    ports: [{ containerPort: 8080, hostPort }],
    restartPolicy: { name: "unless-stopped" },
  };
  try {
    return await client.post<Container>("/v1/containers", body, settleSeconds);
  } catch (error) {
    if (error instanceof Refused && error.code === "port_taken") return null;
    throw error;
  }
}

/** Resolves once the URL answers 200: a started process may need a moment until it listens. */
async function answers(url: string): Promise<void> {
  const deadline = performance.now() + 10_000;
  for (;;) {
    const ok = await fetch(url, { signal: AbortSignal.timeout(2_000) }).then(
      async (response) => (await response.text()) !== "" && response.ok,
      () => false,
    );
    if (ok) return;
    if (performance.now() > deadline) throw new Error(`${url} does not answer`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}
