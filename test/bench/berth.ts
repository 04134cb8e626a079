import { type ChildProcess, spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { mkdtemp, readdir, readFile, readlink } from "node:fs/promises";
import { basename } from "node:path";
import type { Readable } from "node:stream";
import { readConfig } from "../../src/config.ts";
import { claimPorts, freePort, Owned } from "../support/ownership.ts";
import type { Engine } from "./engine.ts";
import { Client } from "./http.ts";

const root = new URL("../..", import.meta.url).pathname;
/** As the peer; the disk limit is the default one. */
const limits = { cpus: 1, memory: 128 << 20, pids: 128 };

export interface Berth extends Engine {
  /** Where a source of the default project is pushed to. */
  gitUrl(source: string): string;
  /** Builds from a context that is sent as it comes. `noCache`: every step anew. */
  build(tag: string, context: Buffer | Readable, options?: { noCache: boolean }): Promise<void>;
  /** Process ids of API and worker. */
  servers(): number[];
}

/**
 * Berth as `npm start` runs it, with a data directory, a port and a hundred ports to publish of its own.
 * @param registry `address:port` of the registry that it may reach
 */
export async function startBerth(registry: string): Promise<Berth> {
  const dataDir = await mkdtemp("/var/lib/berth-bench-");
  const port = freePort();
  const { first, last } = claimPorts();
  const env = {
    ...process.env,
    BERTH_DATA_DIR: dataDir,
    BERTH_LISTEN: `127.0.0.1:${String(port)}`,
    BERTH_PORT_RANGE: `${first}-${last}`,
    BERTH_DEMO: "0",
    BERTH_HOST_NAME: "bench",
    BERTH_INSECURE_REGISTRIES: registry,
    BERTH_OUTBOUND_ALLOW: `${registry.slice(0, registry.indexOf(":"))}/32`,
  };
  const { instance, runDir, runtime } = readConfig(env);
  const owned = Owned.record({ directory: dataDir, sandboxes: { instance, runDir, dataDir, runtime } });
  const server = spawn(process.execPath, [`${root}src/main.ts`], { env, stdio: ["ignore", "pipe", "inherit"] });
  await ready(server);
  const token = (await readFile(`${dataDir}/token`, "utf8")).trim();
  const plain = new Client({ host: "127.0.0.1", port }, { authorization: `Bearer ${token}` });
  const projects = await plain.json<{ items: { id: string; name: string }[] }>("GET", "/v1/projects");
  const project = projects.items.find((each) => each.name === "default")?.id ?? "";
  plain.close();
  const api = new Client({ host: "127.0.0.1", port }, { authorization: `Bearer ${token}`, "berth-project": project });
  return {
    name: "Berth",
    gitUrl: (source) => `http://bench:${token}@127.0.0.1:${String(port)}/git/default/${source}.git`,
    async build(tag, context, options) {
      const build = await api.json<{ status: string; error?: unknown }>(
        "POST",
        `/v1/builds?tag=${encodeURIComponent(tag)}${options?.noCache === true ? "&noCache=true" : ""}`,
        context,
        { prefer: "wait=600" },
      );
      if (build.status !== "succeeded") throw new Error(`the build ended as ${JSON.stringify(build)}`);
    },
    servers() {
      const children = readFileSync(`/proc/${String(server.pid)}/task/${String(server.pid)}/children`, "utf8");
      return children
        .trim()
        .split(" ")
        .filter((pid) => /(?:api|worker)\.ts/.test(readFileSync(`/proc/${pid}/cmdline`, "utf8")))
        .map(Number);
    },
    async start(image, command) {
      return (await api.json<{ id: string }>("POST", "/v1/containers", { image, command, resources: limits })).id;
    },
    async firstLine(id) {
      for (;;) {
        const line = await api.firstLine(`/v1/containers/${id}/logs?follow=true&stderr=false`);
        if (line !== null) return line;
        const container = await api.json<Record<string, string>>("GET", `/v1/containers/${id}`);
        if (container["status"] === "failed") throw new Error(JSON.stringify(container));
      }
    },
    async remove(id) {
      await api.json("DELETE", `/v1/containers/${id}?force=true`, undefined, { prefer: "wait=30" });
    },
    async pull(reference) {
      settled(await api.json<Job>("POST", "/v1/images/pull", { reference }, { prefer: "wait=120" }));
    },
    async push(tag, destination) {
      const body = { reference: tag, destination };
      settled(await api.json<Job>("POST", "/v1/images/push", body, { prefer: "wait=120" }));
    },
    async keepers(id) {
      // Monitors are named by the slot that the container's link leads to.
      return pidsNaming(`/slots/${basename(await readlink(`${runDir}/containers/${id}`))} `);
    },
    async close() {
      api.close();
      server.kill("SIGINT");
      await new Promise((resolve) => server.once("exit", resolve));
      const down = spawn(process.execPath, [`${root}src/down.ts`], { env, stdio: "ignore" });
      await new Promise((resolve) => down.once("exit", resolve));
      await owned.remove();
    },
  };
}

interface Job {
  status: string;
  error?: unknown;
}

function settled(job: Job): void {
  if (job.status !== "succeeded") throw new Error(JSON.stringify(job));
}

/** Processes whose command line has this text: a container's monitor or shim. */
export async function pidsNaming(text: string): Promise<number[]> {
  const found: number[] = [];
  for (const name of await readdir("/proc")) {
    if (!/^\d+$/.test(name) || Number(name) === process.pid) continue;
    const line = await readFile(`/proc/${name}/cmdline`, "utf8").catch(() => "");
    if (line.replaceAll("\0", " ").includes(text)) found.push(Number(name));
  }
  return found;
}

function ready(server: ChildProcess): Promise<void> {
  return new Promise((resolve, reject) => {
    let output = "";
    server.stdout?.on("data", (chunk: Buffer) => {
      output += chunk.toString();
      if (/ready/i.test(output)) resolve();
    });
    server.once("exit", (code) => reject(new Error(`Berth ended with ${String(code)}: ${output}`)));
  });
}
