import { readdirSync, readlinkSync, rmSync } from "node:fs";
import { basename } from "node:path";
import { removeState } from "./apply/runtime.ts";
import { readOwner } from "./notes.ts";
import type { Parts } from "./parts.ts";
import type { Layout } from "./plan/layout.ts";
import { releaseSlot, removeDisk } from "./release.ts";

/** What the sweep must leave alone. */
export interface Kept {
  /** Container → slot, of every container that has a row. */
  live: ReadonlyMap<string, number>;
  /** Container → slot, of every container that has a link on this host. */
  linked: ReadonlyMap<string, number>;
}

/**
 * Removes everything of this instance that no live row stands for: first by slot, as whole sandboxes, then
 * what is left of each kind of kernel object, found by its name. A live container's disk and log stay, whatever else of
 * it is left over.
 */
export async function sweep(parts: Parts, { live, linked }: Kept): Promise<void> {
  const disks = new Set(live.values());
  const stale = [...linked].filter(([id, slot]) => live.get(id) !== slot);
  const runs = new Set([...linked].filter(([id, slot]) => live.get(id) === slot).map(([, slot]) => slot));

  await Promise.all(stale.map(([id, slot]) => releaseSlot(parts, slot, id)));
  const unlinked = numbersIn(parts.layout.slots).filter((slot) => !runs.has(slot));
  await Promise.all(unlinked.map((slot) => releaseSlot(parts, slot, null)));

  await Promise.all(
    parts.network
      .slots()
      .filter((slot) => !runs.has(slot))
      .map((slot) => parts.network.detach(slot)),
  );
  for (const slot of parts.firewall.slots()) if (!runs.has(slot)) parts.firewall.expel(slot);
  for (const name of parts.cgroups.list(parts.layout.cgroup)) {
    const [project, slot] = name.split("/");
    const kept = runs.has(Number(slot)) && readOwner(parts.slot(Number(slot)).owner)?.projectId === project;
    if (!kept) await parts.cgroups.remove(`${parts.layout.cgroup}/${name}`);
  }
  const names = new Set([...runs].map((slot) => parts.slot(slot).name));
  for (const name of readdirSync(parts.layout.runtimeRoot)) {
    // crun keeps a directory of its own there.
    if (!name.startsWith(".") && !names.has(name)) removeState(parts.layout.runtimeRoot, name);
  }
  for (const name of readdirSync(parts.layout.exits)) {
    if (!names.has(name)) rmSync(`${parts.layout.exits}/${name}`, { force: true });
  }
  for (const slot of [...parts.disks.slots(), ...numbersIn(parts.layout.logs)]) {
    if (!disks.has(slot)) await removeDisk(parts, slot);
  }
}

/** Slots that have a directory of their number. */
export function numbersIn(directory: string): number[] {
  return readdirSync(directory).flatMap((name) => (/^\d+$/.test(name) ? [Number(name)] : []));
}

/** Container → slot, of every container that has a link on this host. */
export function linkedSlots(all: Layout): Map<string, number> {
  const slotOf = (id: string): number => Number(basename(readlinkSync(`${all.links}/${id}`)));
  return new Map(readdirSync(all.links).map((id) => [id, slotOf(id)]));
}
