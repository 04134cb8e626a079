import { readFile } from "node:fs/promises";
import { type Config, ConfigError, readConfig } from "./config.ts";
import { agentKey } from "./core/keys.ts";
import { openClient } from "./db/client.ts";
import { Wakeups } from "./db/wakeups.ts";
import { FileBlobs } from "./image/blobs.ts";
import { createLog, type Log } from "./log.ts";
import { Agents } from "./routes/agents.ts";
import { createApp } from "./routes/app.ts";
import { closeServer, listen } from "./routes/listener.ts";
import { OpenStreams } from "./routes/open-streams.ts";
import { TokenCache } from "./routes/token-cache.ts";
import { databaseReady, reportReady } from "./supervised.ts";

const gib = 2 ** 30;

/** What bounds one client, one project and all of them together. */
const limits = { contextBytes: 4 * gib, heldRequests: 500 };
const databaseConnections = 8;

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
  const agents = new Agents(sql, agentKey(secretKey));
  const app = createApp({
    sql,
    wakeups,
    tokens,
    streams,
    agents,
    log,
    secretKey,
    limits,
    blobs: new FileBlobs(`${config.dataDir}/blobs`),
    corsOrigins: config.corsOrigins,
  });
  const server = await listen(app, config.listen).catch((cause: unknown) => {
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new ConfigError(`BERTH_LISTEN: ${config.listen.host}:${String(config.listen.port)} can't be used (${why})`);
  });
  return {
    async close() {
      streams.closeAll();
      await closeServer(server);
      agents.close();
      await wakeups.close();
      await sql.end({ timeout: 5 });
    },
  };
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
