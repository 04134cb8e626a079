import { existsSync, rmSync } from "node:fs";
import { join } from "node:path";
import { ConfigError, readConfig } from "./config.ts";
import { runningEmbedded } from "./db/embedded.ts";
import { Sandboxes } from "./isolation/sandbox.ts";
import { directoriesOf } from "./supervisor/directories.ts";
import { awaitLock, takeLock } from "./supervisor/lock.ts";
import { awaitPredecessor } from "./supervisor/predecessor.ts";
import { closeView } from "./supervisor/view.ts";

/**
 * `npm run down`: stops the supervisor with API, worker and database, then the containers, and removes all that this
 * instance has in the kernel. Data, packages and users stay; the next start brings back what a restart policy says.
 */
async function down(): Promise<void> {
  const config = readConfig(process.env);
  if (process.getuid?.() !== 0) throw new ConfigError("Only root can stop containers: sudo npm run down");
  if (!existsSync(config.dataDir)) {
    say(`Nothing has ever run on ${config.dataDir}.`);
    return;
  }
  const paths = directoriesOf(config.dataDir, config.runDir);
  const lock = takeLock(paths.lock);
  if (!lock.taken) {
    say(`Stopping API, worker and database (process ${String(lock.holder)})`);
    process.kill(lock.holder, "SIGTERM");
    await awaitLock(paths.lock);
  }
  // Left behind by a supervisor that was killed.
  for (const role of ["api", "worker"]) await awaitPredecessor(join(config.runDir, `${role}.pid`));
  await (await runningEmbedded(paths.database))?.stop();

  closeView(config.runDir);
  await Sandboxes.down(config);
  rmSync(config.runDir, { recursive: true, force: true });
  say(`Nothing runs any more. Data stays in ${config.dataDir}.`);
}

function say(line: string): void {
  process.stdout.write(`${line}\n`);
}

down().then(
  () => process.exit(0),
  (error: unknown) => {
    process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n`);
    process.exit(1);
  },
);
