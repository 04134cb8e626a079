import { readFile } from "node:fs/promises";
import { type Config, ConfigError, readConfig } from "./config.ts";
import { keyedServer } from "./core/keyed-tls.ts";
import { identityKey } from "./core/keys.ts";
import { openClient } from "./db/client.ts";
import type { Pool } from "./db/scope.ts";
import { sourceIds } from "./db/sources.ts";
import { claimBlob, dueBlobs, neededBlobs, recordUnneeded, removeUnneeded } from "./db/unneeded-blobs.ts";
import { topics, Wakeups } from "./db/wakeups.ts";
import { requireDisk } from "./engine/host-disk.ts";
import { openClusterStore } from "./image/blob-stores.ts";
import type { ClusterStore } from "./image/blobs.ts";
import { collectBlobs } from "./image/collect-blobs.ts";
import { createLog, type Log } from "./log.ts";
import { Agents } from "./routes/agents.ts";
import { createApp } from "./routes/app.ts";
import type { Services } from "./routes/context.ts";
import { recoverPushes } from "./routes/git/push-builds.ts";
import { Repositories } from "./routes/git/repositories.ts";
import { createInternalApp, type InternalServices } from "./routes/internal/app.ts";
import { addBlobs } from "./routes/internal/blobs.ts";
import { passDatabase } from "./routes/internal/database.ts";
import { authenticateHost } from "./routes/internal/host-auth.ts";
import { addHostAdmission } from "./routes/internal/hosts.ts";
import { closeServer, listen } from "./routes/listener.ts";
import { OpenStreams } from "./routes/open-streams.ts";
import { TokenCache } from "./routes/token-cache.ts";
import { databaseReady, reportReady } from "./supervised.ts";

const gib = 2 ** 30;

/** What bounds one client, one project and all of them together. */
const limits = { contextBytes: 4 * gib, heldRequests: 500, uploads: 32 };
const repositoryLimits = { repositoryBytes: gib, packBytes: 128 * 2 ** 20 };
const databaseConnections = 8;
const collectEveryMs = 10 * 60_000;

/** An API that listens until `close`. */
interface Api {
  close(): Promise<void>;
}

/** The composition root of the API role: stateless, unprivileged, as many as one likes over one database. */
async function startApi(config: Config, log: Log): Promise<Api> {
  const secretKey = config.secretKey ?? (await readFile(`${config.dataDir}/secret-key`, "utf8")).trim();
  const address = config.databaseUrl === null ? { socketDir: `${config.runDir}/db` } : { url: config.databaseUrl };
  const sql = openClient(address, "api", databaseConnections);
  const wakeups = await Wakeups.open(sql);
  const tokens = new TokenCache(sql, wakeups);
  const streams = new OpenStreams(wakeups, limits.heldRequests, (principal) => tokens.stillValid(principal));
  const agents = new Agents(sql, secretKey);
  const { blobStore, bucketCredentials, dataDir } = config;
  const claim = (digest: string) => claimBlob(sql, digest);
  // Below the directory of `file:` and not the same: what is on its way to a bucket goes after an hour.
  const blobs = openClusterStore(blobStore, bucketCredentials, `${dataDir}/blobs/near`, claim, requireDisk);
  if (blobStore.kind === "s3") await reach(blobs);
  const repositories = new Repositories(`${config.dataDir}/git`, repositoryLimits);
  const services = {
    sql,
    wakeups,
    tokens,
    streams,
    repositories,
    agents,
    log,
    secretKey,
    limits,
    blobs,
    corsOrigins: config.corsOrigins,
    publicUrl: config.publicUrl,
  };
  const app = createApp(services);
  const server = await listen(app, config.listen).catch(refuse("BERTH_LISTEN", config.listen));
  const authenticate = (bearer: string) => authenticateHost(sql, secretKey, bearer);
  const closeInternal = await listenInternally(config, { authenticate, log }, blobs, { sql, secretKey, wakeups });
  void keepRepositories(services);
  const collecting = setInterval(() => {
    void collect(sql, blobs, log);
    void keepRepositories(services);
  }, collectEveryMs);
  return {
    async close() {
      clearInterval(collecting);
      streams.closeAll();
      await Promise.all([closeServer(server), closeInternal()]);
      agents.close();
      await wakeups.close();
      await sql.end({ timeout: 5 });
    },
  };
}

/** Makes an address that can't be used an error of the setting. */
function refuse(name: string, { host, port }: { host: string; port: number }): (cause: unknown) => never {
  return (cause) => {
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new ConfigError(`${name}: ${host}:${String(port)} can't be used (${why})`);
  };
}

/** Listens for workers of other machines, where the settings say so; answers how to end that. */
async function listenInternally(
  config: Config,
  services: InternalServices,
  blobs: ClusterStore,
  hosts: { sql: Pool; secretKey: string; wakeups: Wakeups },
): Promise<() => Promise<void>> {
  const { internalListen, internalTls } = config;
  if (internalListen === null) return () => Promise.resolve();
  const tls =
    internalTls === null
      ? keyedServer((identity) => identityKey(hosts.secretKey, identity))
      : { cert: await readFile(internalTls.certificate, "utf8"), key: await readFile(internalTls.key, "utf8") };
  const app = createInternalApp(services);
  addBlobs(app, blobs);
  addHostAdmission(app, hosts);
  const server = await listen(app, internalListen, { tls }).catch(refuse("BERTH_INTERNAL_LISTEN", internalListen));
  const endPassed = passDatabase(server, config.databaseUrl === null ? `${config.runDir}/db/.s.PGSQL.5432` : null, {
    authenticate: services.authenticate,
    onForgotten: (hostId, wake) => hosts.wakeups.subscribe(topics.forgotten(hostId), wake),
  });
  return async () => {
    const closed = closeServer(server);
    endPassed();
    await closed;
  };
}

/** @throws ConfigError when the bucket can't be listed: better now than at the first build */
async function reach(bucket: ClusterStore): Promise<void> {
  try {
    await bucket.list()[Symbol.asyncIterator]().next();
  } catch (error) {
    throw new ConfigError(`BERTH_BLOB_STORE: ${error instanceof Error ? error.message : String(error)}`);
  }
}

async function collect(sql: Pool, blobs: ClusterStore, log: Log): Promise<void> {
  try {
    const removed = await collectBlobs(blobs, {
      due: () => dueBlobs(sql),
      needed: () => neededBlobs(sql),
      recordUnneeded: (digests) => recordUnneeded(sql, digests),
      removeUnneeded: (blob, remove) => removeUnneeded(sql, blob, remove),
    });
    if (removed > 0) log.info({ removed }, "removed blobs that nothing needs");
  } catch (error) {
    log.warn({ err: error }, "collecting blobs failed");
  }
}

/** What pushes left undone that were cut off, and repositories without a source. */
async function keepRepositories(services: Services): Promise<void> {
  const { sql, repositories, log } = services;
  try {
    await recoverPushes(services);
    await repositories.tidy((projectId) => sourceIds(sql, { projectId }));
  } catch (error) {
    log.warn({ err: error }, "looking after pushed repositories failed");
  }
}

async function main(): Promise<void> {
  const config = readConfig(process.env);
  const log = createLog("api", config.logLevel);
  await databaseReady();
  const api = await startApi(config, log);
  reportReady();
  await new Promise<void>((resolve) => {
    for (const signal of ["SIGINT", "SIGTERM"] as const) process.once(signal, () => resolve());
    process.once("disconnect", () => resolve());
  });
  await api.close();
  process.exit(0);
}

main().catch((error: unknown) => {
  process.stderr.write(
    error instanceof ConfigError ? `${error.message}\n` : `The API could not start: ${String(error)}\n`,
  );
  process.exit(1);
});
