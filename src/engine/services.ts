import type { Config } from "../config.ts";
import type { Connection } from "../db/connect.ts";
import type { Wakeups } from "../db/wakeups.ts";
import type { BlobStore } from "../image/blobs.ts";
import type { LayerStore } from "../image/layers.ts";
import type { Registry } from "../image/registry.ts";
import type { Sandboxes } from "../isolation/sandbox.ts";
import type { Log } from "../log.ts";
import type { OpenSealed } from "./sealed.ts";

/** This worker's host and the session that fences its host-bound writes. */
export interface HostSession {
  id: string;
  session: number;
}

/** What the engine's parts are given by worker.ts; each takes from it only what it names. */
export interface Services {
  config: Config;
  openSealed: OpenSealed;
  log: Log;
  connection: Connection;
  wakeups: Wakeups;
  host: HostSession;
  blobs: BlobStore;
  layers: LayerStore;
  registry: Registry;
  sandboxes: Sandboxes;
}
