import { readFile } from "node:fs/promises";
import { listenAgent } from "./agent/listener.ts";
import { type Config, ConfigError, readConfig } from "./config.ts";
import { BerthError } from "./core/errors.ts";
import { agentKey, formatCredential } from "./core/keys.ts";
import { heartbeat } from "./db/hosts-worker.ts";
import { listHostContainers } from "./db/inbox.ts";
import type { Pool } from "./db/scope.ts";
import { claimBlob } from "./db/unneeded-blobs.ts";
import { topics, Wakeups } from "./db/wakeups.ts";
import { Converger } from "./engine/converge.ts";
import { connectHost, isForgotten } from "./engine/host-database.ts";
import { freeDisk } from "./engine/host-disk.ts";
import { type Admission, type HostIdentity, openHost } from "./engine/host-identity.ts";
import { agentListen, hostRegistration } from "./engine/host-registration.ts";
import { build, clearBuildScratch } from "./engine/jobs/build.ts";
import { deploy } from "./engine/jobs/deploy.ts";
import { pull } from "./engine/jobs/pull.ts";
import { push } from "./engine/jobs/push.ts";
import { source } from "./engine/jobs/source.ts";
import { JobRunner } from "./engine/runner.ts";
import { openByApi, openWithKey } from "./engine/sealed.ts";
import type { Services } from "./engine/services.ts";
import { collect } from "./engine/upkeep/collect.ts";
import { openClusterStore, openHostStore } from "./image/blob-stores.ts";
import { LayerStore } from "./image/layers.ts";
import { Registry } from "./image/registry.ts";
import { Sandboxes } from "./isolation/sandbox.ts";
import { createLog, type Log } from "./log.ts";
import { databaseReady, reportReady } from "./supervised.ts";

/**
 * How many jobs of each kind one host does side by side, so that none keeps the others from their turn. Of `source` more
 * than a project may have: those wait for tenants' servers, which need not answer.
 */
const jobsAtOnce = { build: 4, pull: 4, push: 4, source: 16, deploy: 8 };

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
 * @param database resolves when it can be used; what needs none is done meanwhile
 */
async function startWorker(config: Config, log: Log, database: Promise<void>): Promise<Worker> {
  const admission = await admissionOf(config);
  const sandboxes = await Sandboxes.open(config, log);
  await clearBuildScratch(config.dataDir, sandboxes);
  await database;
  const agentAt = agentListen(config, "api" in admission);
  const way = { url: config.databaseUrl, socketDir: `${config.runDir}/api-database` };
  const opened = await openHost({
    file: `${config.dataDir}/worker/host.json`,
    registration: await hostRegistration(config, agentAt),
    admission,
    connect: (identity) => connectHost(way, admission, identity),
    // Of what it still runs nobody wants anything any more.
    onForgotten: () => sandboxes.sweep([]),
  });
  if (opened === null) throw new ConfigError("BERTH_JOIN_TOKEN: is needed, as this host is new or was forgotten");
  const { connection } = opened;
  const { rebooted, key, id, session } = opened.host;
  const host = { id, session };
  const { openSealed, blobs } = clusterMeans(config, admission, opened.host, connection.sql);
  const layers = new LayerStore(`${config.dataDir}/worker/layers`, blobs);
  const [wakeups, rows] = await Promise.all([
    Wakeups.open(connection.sql),
    listHostContainers(connection.sql, host.id),
    layers.removeUnfinished(),
  ]);
  const registry = new Registry({
    mirrors: config.registryMirrors,
    insecure: config.insecureRegistries,
    allow: config.outboundAllow,
  });
  const services: Services = { config, openSealed, log, connection, wakeups, host, blobs, layers, registry, sandboxes };

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

  const runner = new JobRunner(services, { build, pull, push, source, deploy }, jobsAtOnce);
  runner.start();
  const secret = agentKey(key);
  const loadAgent = async () => {
    try {
      return (await import("./agent/server.ts")).agentListener(services, secret);
    } catch (error) {
      log.error({ err: error }, "what answers the API could not be loaded");
      throw error;
    }
  };
  const agent = await listenAgent(loadAgent, agentAt, {
    id: host.id,
    key: secret,
    blobsDir: `${config.dataDir}/blobs`,
  }).catch((cause: unknown) => {
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new ConfigError(`BERTH_AGENT_LISTEN: can't be used (${why})`);
  });

  const { promise: lost, resolve } = Promise.withResolvers<string>();
  const lose = () => resolve("another worker of this host has taken over, or the host was forgotten");
  const timers = [
    setInterval(readInbox, everyMs.inbox),
    setInterval(() => {
      const beat = freeDisk(config.dataDir).then((free) => heartbeat(connection.db, host, free));
      beat.then(
        (held) => {
          if (!held) lose();
        },
        async (error: unknown) => {
          log.warn({ err: error }, "the heartbeat failed");
          // A host that was forgotten is not let in to read that its row is gone.
          if (await isForgotten(admission, opened.host, error).catch(() => false)) lose();
        },
      );
    }, everyMs.heartbeat),
    setInterval(() => {
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

/** Where a host gets at what is not its own: the cluster's blobs and its jobs' secrets. Without the key, by asking the API. */
function clusterMeans(
  config: Config,
  admission: Admission,
  identity: HostIdentity,
  sql: Pool,
): Pick<Services, "openSealed" | "blobs"> {
  const near = `${config.dataDir}/worker/blobs`;
  if ("api" in admission) {
    const access = { ...admission.api, credential: formatCredential(identity) };
    return { openSealed: openByApi(access), blobs: openHostStore(access, near) };
  }
  const claim = (digest: string) => claimBlob(sql, digest);
  return {
    openSealed: openWithKey(admission.secretKey),
    blobs: openClusterStore(config.blobStore, config.bucketCredentials, near, claim),
  };
}

/** How this host becomes known: by the secret key, where it is at hand, else as one that joins. */
async function admissionOf(config: Config): Promise<Admission> {
  const kept = await readFile(`${config.dataDir}/secret-key`, "utf8").catch(() => null);
  const secretKey = config.secretKey ?? kept?.trim();
  const url = config.databaseUrl;
  if (secretKey !== undefined) {
    return { secretKey, database: url === null ? { socketDir: `${config.runDir}/db` } : { url } };
  }
  if (config.apiUrl === null) {
    throw new ConfigError("BERTH_API_URL: is needed to join: the API's internal listener, tls://ADDRESS:PORT");
  }
  if (config.hostAddress === "127.0.0.1") {
    throw new ConfigError("BERTH_HOST_ADDRESS: is needed to join: where clients reach this host's ports");
  }
  if (url !== null && (new URL(url).username !== "" || new URL(url).password !== "")) {
    throw new ConfigError(
      "BERTH_DATABASE_URL: must not say a user or password: a host that joins has a login of its own",
    );
  }
  const ca = config.internalCa === null ? null : await readFile(config.internalCa, "utf8");
  return { api: { url: config.apiUrl, ca }, joinToken: config.joinToken };
}

async function main(): Promise<void> {
  const config = readConfig(process.env);
  const log = createLog("worker", config.logLevel);
  const worker = await startWorker(config, log, databaseReady());
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
  // What the settings or another host cause is said in one line.
  const expected = error instanceof ConfigError || error instanceof BerthError;
  const text = error instanceof Error ? error.message : String(error);
  process.stderr.write(expected ? `${text}\n` : `The worker could not start: ${text}\n`);
  if (error instanceof Error && !expected) process.stderr.write(`${error.stack ?? ""}\n`);
  process.exit(1);
});
