import { closeSync, existsSync } from "node:fs";
import { removeMountNamespace } from "./apply/host.ts";
import { lockDataDir } from "./apply/lock.ts";
import { isAlive, signalProcess, waitGone } from "./apply/process.ts";
import { readRun } from "./notes.ts";
import { closeParts, openParts, type Parts, type SandboxConfig } from "./parts.ts";
import { layout } from "./plan/layout.ts";
import { releaseSlot } from "./release.ts";
import { linkedSlots, numbersIn, sweep } from "./sweep.ts";

const SIGTERM = 15;
const SIGKILL = 9;
/** How long a killed process may take; after that the whole cgroup is killed. */
const killMs = 5000;

/**
 * Ends all containers and removes every kernel object of the instance; disks, logs and the claim on ids stay. For a
 * process in the host's own mount namespace, when no worker runs: mounts go with the namespace that they are in.
 * @param graceMs how long containers may take after SIGTERM
 * @throws BerthError `unavailable` when a worker runs
 */
export async function takeDown(config: SandboxConfig, graceMs = 5000): Promise<void> {
  const all = layout(config);
  const lock = lockDataDir(config.dataDir);
  try {
    if (existsSync(all.slots)) {
      const parts = await openParts(config);
      const ids = new Map([...linkedSlots(all)].map(([id, slot]) => [slot, id]));
      const slots = numbersIn(all.slots);
      await Promise.all(slots.map((slot) => endPolitely(parts, slot, graceMs)));
      await Promise.all(slots.map((slot) => releaseSlot(parts, slot, ids.get(slot) ?? null)));
      await sweep(parts, { live: keptDisks(parts), linked: new Map() });
      parts.firewall.drop();
      await parts.network.down();
      parts.cgroups.removeParent(all.cgroup);
      await closeParts(parts);
    }
    await removeMountNamespace(config);
  } finally {
    closeSync(lock);
  }
}

async function endPolitely(parts: Parts, slot: number, graceMs: number): Promise<void> {
  const run = readRun(parts.slot(slot).run);
  if (run === null || !isAlive(run.process)) return;
  signalProcess(run.process, SIGTERM);
  if (await waitGone(run.process, graceMs)) return;
  signalProcess(run.process, SIGKILL);
  await waitGone(run.process, killMs);
}

/** All disks and logs that there are: which of them have a row is not known here. */
function keptDisks(parts: Parts): Map<string, number> {
  return new Map([...parts.disks.slots(), ...numbersIn(parts.layout.logs)].map((slot) => [String(slot), slot]));
}
