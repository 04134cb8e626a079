import { existsSync, watch } from "node:fs";
import { signalProcess, waitGone } from "./apply/process.ts";
import { readRun } from "./notes.ts";
import type { Parts } from "./parts.ts";
import { isMonitorLost } from "./probe.ts";

const SIGKILL = 9;
const everyMs = 1000;

/**
 * Notices that containers have ended: by the exit files that monitors write, 2 ms after the process's end. A monitor
 * that was killed writes none; those of this process's own making are seen to end, those of earlier workers are looked
 * at every second.
 */
export class Exits {
  readonly #parts: Parts;
  readonly #linked: ReadonlyMap<string, number>;
  readonly #adopted: Set<string>;
  readonly #lost = new Set<string>();
  readonly #listeners = new Set<(id: string) => void>();
  readonly #close: () => void;

  /** @param linked container → slot, kept up to date by the owner; what is in it now was started by earlier workers */
  constructor(parts: Parts, linked: ReadonlyMap<string, number>) {
    this.#parts = parts;
    this.#linked = linked;
    this.#adopted = new Set(linked.keys());
    const { exits } = parts.layout;
    const watcher = watch(exits, { persistent: false }, (_event, name) => {
      if (name === null || !existsSync(`${exits}/${name}`)) return;
      for (const [id, slot] of linked) if (parts.slot(slot).name === name) this.#tell(id);
    });
    const timer = setInterval(() => {
      for (const id of this.#adopted) this.lookAt(id);
    }, everyMs);
    timer.unref();
    this.#close = () => {
      watcher.close();
      clearInterval(timer);
    };
  }

  /** Calls back with the id of each container that has ended, until the returned function is called. */
  on(listener: (id: string) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /**
   * Looks whether a container has lost its monitor. It can neither print nor tell how it ended then, so it is ended:
   * once, as any other end is. The one who is told probes, and finds `monitor_lost`.
   */
  lookAt(id: string): void {
    const slot = this.#linked.get(id);
    if (slot === undefined || this.#lost.has(id) || !isMonitorLost(this.#parts, slot)) return;
    const run = readRun(this.#parts.slot(slot).run);
    if (run === null) return;
    this.#lost.add(id);
    signalProcess(run.process, SIGKILL);
    void waitGone(run.process, 10_000).then(() => {
      this.#tell(id);
    });
  }

  /** The container's run was released; another may come. */
  forget(id: string): void {
    this.#adopted.delete(id);
    this.#lost.delete(id);
  }

  close(): void {
    this.#close();
  }

  #tell(id: string): void {
    for (const listener of this.#listeners) listener(id);
  }
}
