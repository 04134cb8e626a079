import { existsSync, mkdirSync } from "node:fs";
import { type ParkedMonitor, parkMonitor } from "./apply/monitor.ts";
import { closeNamespaces, createNamespaces, type Namespaces } from "./apply/namespaces.ts";
import { identify } from "./apply/process.ts";
import { writeNote } from "./notes.ts";
import type { Parts } from "./parts.ts";

/** What has to be known of a container before its slot can be made ready. */
export interface PrepareOptions {
  network: "project" | "none";
  /** Bytes. */
  disk: number;
  tty: boolean;
  stdin: boolean;
  /** Whether the slot's disk is kept from an earlier run, if there is one. */
  keepDisk: boolean;
}

/** A slot that waits for its container: all of it that does not depend on which one it is. */
export interface Prepared {
  slot: number;
  options: PrepareOptions;
  namespaces: Namespaces;
  monitor: ParkedMonitor;
}

/**
 * Makes a slot ready: directory, namespaces, link, disk, parked monitor. 6 ms, which the pool takes ahead of need. What
 * a failure leaves is taken away by releaseSlot, except the descriptors, which are closed here.
 */
export async function prepareSlot(parts: Parts, slot: number, options: PrepareOptions): Promise<Prepared> {
  const { reach, network, disks } = parts;
  const paths = parts.slot(slot);
  for (const path of [paths.dir, paths.rootfs, paths.disk.mount, paths.logDir]) {
    mkdirSync(path, { recursive: true, mode: 0o711 });
  }
  reach("slot.directory");
  const namespaces = createNamespaces(parts.idBase(slot));
  try {
    reach("slot.namespaces");
    if (options.network === "project") network.attach(slot, namespaces);
    else network.attachLoopback(namespaces);
    reach("slot.network");
    if (!options.keepDisk || !existsSync(disks.path(slot))) await disks.create(slot, options.disk);
    reach("slot.disk");
    await disks.mount(slot, paths.disk.mount, parts.idBase(slot));
    reach("slot.mount");
    const { conmon, runtime } = parts;
    const monitor = parkMonitor({
      conmon,
      runtime,
      exits: parts.layout.exits,
      paths,
      tty: options.tty,
      stdin: options.stdin,
    });
    try {
      const process = identify(monitor.pid);
      if (process === null) throw new Error("the monitor ended at once");
      writeNote(paths.monitor, process);
      reach("slot.monitor");
    } catch (error) {
      monitor.discard();
      throw error;
    }
    return { slot, options, namespaces, monitor };
  } catch (error) {
    closeNamespaces(namespaces);
    throw error;
  }
}

/** Gives up what only this process holds of a prepared slot; the rest is releaseSlot's. */
export function discardPrepared(prepared: Prepared): void {
  prepared.monitor.discard();
  closeNamespaces(prepared.namespaces);
}

/** Gives a prepared slot an empty disk of another size. */
export async function changeDisk(parts: Parts, prepared: Prepared, disk: number): Promise<void> {
  const { mount } = parts.slot(prepared.slot).disk;
  await parts.disks.unmount(mount);
  await parts.disks.create(prepared.slot, disk);
  await parts.disks.mount(prepared.slot, mount, parts.idBase(prepared.slot));
  prepared.options = { ...prepared.options, disk };
}
