import { dirname } from "node:path";
import { fileURLToPath } from "node:url";
import { type Config, ConfigError, readConfig } from "./config.ts";
import { closedParent, directoriesOf, makeDataDirectory } from "./supervisor/directories.ts";
import { takeLock } from "./supervisor/lock.ts";
import { type Running, startBerth } from "./supervisor/start.ts";

/** The composition root of `npm start`: a supervisor of database, API and worker. Exit codes: 0 stopped, 1 not started. */

const clone = dirname(dirname(fileURLToPath(import.meta.url)));
const print = (line: string) => process.stdout.write(`${line}\n`);
const say = (line: string) => {
  print(`  ${line}`);
};
const seconds = (ms: number) => `${(ms / 1000).toFixed(2)} s`;

/** Why the settings can't be used on this machine; null when they can. */
function refusal(config: Config): string | null {
  const joins = config.role === "worker" && config.apiUrl !== null;
  if (config.role !== "all" && config.databaseUrl === null && !joins) {
    return `BERTH_ROLE=${config.role} needs BERTH_DATABASE_URL: the embedded database belongs to a start of all roles`;
  }
  if (process.getuid?.() !== 0) {
    return config.role === "api" ? null : "Only root can run containers: sudo npm start, or BERTH_ROLE=api";
  }
  const closed = closedParent(dirname(config.dataDir));
  return closed === null
    ? null
    : `BERTH_DATA_DIR: ${config.dataDir} is below ${closed}, which Berth's own users can't pass (chmod o+x ${closed})`;
}

function describe(config: Config, running: Running): void {
  const { database, apiMs, workerMs, token } = running;
  if (database !== null) {
    const how = database.adopted ? "was running, adopted" : `ready after ${seconds(database.readyMs)}`;
    say(`database  ${how}${running.migrations > 0 ? `, ${String(running.migrations)} migrations` : ""}`);
  }
  const { host, port } = config.listen;
  if (apiMs !== null) say(`api       ready after ${seconds(apiMs)}, http://${host}:${String(port)}`);
  if (workerMs !== null) say(`worker    ready after ${seconds(workerMs)}`);
  if (token === null) return;
  if (token.fresh) say(`token     ${token.text} (shown this once; kept in ${token.file ?? ""}, for root only)`);
  else say(`token     ${token.file === null ? "as BERTH_ADMIN_TOKEN says" : `in ${token.file}`}`);
}

async function demonstrate(config: Config, { token }: Running, stop: AbortSignal): Promise<void> {
  if (token === null) return;
  const url = `http://${config.listen.host}:${String(config.listen.port)}`;
  const { first: firstPort, last: lastPort } = config.portRange;
  try {
    const { runDemo } = await import("./demo/demo.ts");
    await runDemo({ url, token: token.text, tokenFile: token.file, clone, firstPort, lastPort, say: print });
  } catch (error) {
    if (stop.aborted) return;
    print(`The example did not work: ${error instanceof Error ? error.message : String(error)}`);
  }
}

/**
 * Aborts on the first signal. One that comes more than a second later ends this process at once, and the children end
 * with it. In between more of them are the same Ctrl-C: a terminal sends it to all of `npm start`, and npm passes it on.
 */
function stopSignal(): AbortSignal {
  const controller = new AbortController();
  let first = 0;
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
    process.on(signal, () => {
      if (!controller.signal.aborted) first = performance.now();
      else if (performance.now() - first > 1000) process.exit(1);
      controller.abort();
    });
  }
  return controller.signal;
}

async function main(): Promise<number> {
  const config = readConfig(process.env);
  const refused = refusal(config);
  if (refused !== null) throw new ConfigError(refused);
  makeDataDirectory(config.dataDir);
  const lock = takeLock(directoriesOf(config.dataDir, config.runDir).lock);
  if (!lock.taken) {
    throw new ConfigError(
      `Berth runs on ${config.dataDir} already (process ${String(lock.holder)}); another one needs its own BERTH_DATA_DIR, BERTH_LISTEN and BERTH_PORT_RANGE`,
    );
  }
  const stop = stopSignal();
  const stopped = new Promise((resolve) => {
    stop.addEventListener("abort", resolve);
  });
  print("Berth");
  const running = await startBerth(config, process.env, { clone, main: process.argv[1] ?? "" }, say);
  describe(config, running);
  // Time since this program was started, Node's own start included.
  print(`Ready after ${seconds(performance.now())}.`);
  if (config.demo && config.role === "all") await Promise.race([demonstrate(config, running, stop), stopped]);
  await stopped;
  print("Stopping. Containers keep serving; `npm run down` stops them too.");
  await running.stop();
  return 0;
}

main().then(
  (code) => process.exit(code),
  (error: unknown) => {
    const message = error instanceof Error ? error.message : String(error);
    process.stderr.write(`${error instanceof ConfigError ? "" : "Berth could not start: "}${message}\n`);
    process.exit(1);
  },
);
