import { readFile, rm, statfs } from "node:fs/promises";
import { agentApp, listenAgent } from "./agent/server.ts";
import { type Config, ConfigError, readConfig } from "./config.ts";
import { agentKey } from "./core/keys.ts";
import { connect } from "./db/connect.ts";
import { heartbeat, openHostSession } from "./db/hosts-worker.ts";
import { listHostContainers } from "./db/inbox.ts";
import { topics, Wakeups } from "./db/wakeups.ts";
import { Converger } from "./engine/converge.ts";
import { build, buildScratch } from "./engine/jobs/build.ts";
import { pull } from "./engine/jobs/pull.ts";
import { push } from "./engine/jobs/push.ts";
import { JobRunner } from "./engine/runner.ts";
import type { Services } from "./engine/services.ts";
import { collect } from "./engine/upkeep/collect.ts";
import { FileBlobs } from "./image/blobs.ts";
import { LayerStore } from "./image/layers.ts";
import { Registry } from "./image/registry.ts";
import { Sandboxes } from "./isolation/sandbox.ts";
import { createLog, type Log } from "./log.ts";
import { databaseReady, reportReady } from "./supervised.ts";

/** How many builds, pulls and pushes one host does side by side. */
const jobsAtOnce = 4;

const everyMs = { heartbeat: 5_000, inbox: 2_000, collect: 10 * 60_000 };

/** A worker that runs until `close`; `closed` resolves with the reason when it must end by itself. */
interface Worker {
  close(): Promise<void>;
  lost: Promise<string>;
}

/**
 * The composition root of the worker role: one per host, as root, in the host's pinned mount namespace. Order matters: the
 * sandboxes take the lock on the data directory before the session is opened, so that a newer session's holder is the
 * only process that drives this host.
 */
async function startWorker(config: Config, log: Log): Promise<Worker> {
  const secretKey = config.secretKey ?? (await readFile(`${config.dataDir}/secret-key`, "utf8")).trim();
  const sandboxes = await Sandboxes.open(config, log);
  const address = config.databaseUrl === null ? { socketDir: `${config.runDir}/db` } : { url: config.databaseUrl };
  const connection = connect(address, "owner");
  const bootId = (await readFile("/proc/sys/kernel/random/boot_id", "utf8")).trim();
  const { bsize, bavail } = await statfs(config.dataDir);
  const socket = `${config.runDir}/agent.sock`;
  const { rebooted, ...host } = await openHostSession(connection.db, {
    name: config.hostName,
    address: config.hostAddress,
    agentUrl: `unix:${socket}`,
    bootId,
    cpus: config.host.cpus,
    memory: config.host.memory,
    disk: bsize * bavail,
    portFirst: config.portRange.first,
    portLast: config.portRange.last,
    reservedPorts: [config.listen.port],
  });
  const wakeups = await Wakeups.open(connection.sql);
  const blobs = new FileBlobs(`${config.dataDir}/blobs`);
  const layers = new LayerStore(`${config.dataDir}/worker/layers`, blobs);
  await layers.removeUnfinished();
  await rm(buildScratch(config.dataDir), { recursive: true, force: true });
  const registry = new Registry({
    mirrors: config.registryMirrors,
    insecure: config.insecureRegistries,
    allow: config.outboundAllow,
  });
  const services: Services = { config, secretKey, log, connection, wakeups, host, blobs, layers, registry, sandboxes };

  const rows = await listHostContainers(connection.sql, host.id);
  await sandboxes.sweep(rows);
  const converger = new Converger(services, { rebooted });
  sandboxes.onExit((id) => {
    if (id.startsWith("ctr_")) converger.wake(id);
  });
  for (const { id } of rows) converger.wake(id);
  const readInbox = () => {
    converger.readInbox().catch((error: unknown) => {
      log.warn({ err: error }, "reading the inbox failed");
    });
  };
  wakeups.subscribe(topics.host(host.id), readInbox);
  readInbox();

  const runner = new JobRunner(services, { build, pull, push }, jobsAtOnce);
  runner.start();
  const agent = await listenAgent(agentApp(services, agentKey(secretKey)), socket, `${config.dataDir}/blobs`);

  const { promise: lost, resolve: lose } = Promise.withResolvers<string>();
  const timers = [
    setInterval(readInbox, everyMs.inbox),
    setInterval(() => {
      heartbeat(connection.db, host).then(
        (held) => {
          if (!held) lose("a newer session of this host has taken over");
        },
        (error: unknown) => {
          log.warn({ err: error }, "the heartbeat failed");
        },
      );
    }, everyMs.heartbeat),
    setInterval(() => {
      if (!runner.idle) return;
      collect(services).catch((error: unknown) => {
        log.warn({ err: error }, "collecting failed");
      });
    }, everyMs.collect),
  ];
  return {
    lost,
    async close() {
      for (const timer of timers) clearInterval(timer);
      agent.close();
      converger.close();
      await runner.stop();
      await sandboxes.close();
      await wakeups.close();
      await connection.close();
    },
  };
}

async function main(): Promise<void> {
  const config = readConfig(process.env);
  const log = createLog("worker", config.logLevel);
  await databaseReady();
  const worker = await startWorker(config, log);
  reportReady();
  const reason = await Promise.race([
    worker.lost,
    new Promise<null>((resolve) => {
      for (const signal of ["SIGINT", "SIGTERM"] as const) process.once(signal, () => resolve(null));
      process.once("disconnect", () => resolve(null));
    }),
  ]);
  if (reason !== null) log.error(reason);
  await worker.close();
  process.exit(reason === null ? 0 : 1);
}

main().catch((error: unknown) => {
  process.stderr.write(
    error instanceof ConfigError ? `${error.message}\n` : `The worker could not start: ${String(error)}\n`,
  );
  if (error instanceof Error && !(error instanceof ConfigError)) process.stderr.write(`${error.stack ?? ""}\n`);
  process.exit(1);
});
