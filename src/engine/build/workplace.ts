import { mkdirSync } from "node:fs";
import { rm } from "node:fs/promises";
import { HttpClient } from "../../image/http.ts";
import type { OutboundPolicy } from "../../image/outbound.ts";
import type { Log } from "../../log.ts";
import { OpenImages } from "./image-tree.ts";
import { Leaving } from "./leaving.ts";

/** How long a server that a build downloads from may be silent. */
const downloadIdleMs = 30_000;

/** What one build has of its host while it runs, to be given back whole. */
export class Workplace {
  readonly scratch: string;
  /** Which addresses it may reach, and what it downloads with. */
  readonly outbound: OutboundPolicy;
  readonly http: HttpClient;
  readonly images = new OpenImages();
  readonly leaving = new Leaving();
  readonly #log: Log;

  private constructor(scratch: string, outbound: OutboundPolicy, log: Log) {
    this.scratch = scratch;
    this.outbound = outbound;
    this.http = new HttpClient(outbound, downloadIdleMs);
    this.#log = log;
  }

  /** @param scratch a directory that is made, for what lives as long as the build */
  static open(scratch: string, outbound: OutboundPolicy, log: Log): Workplace {
    mkdirSync(scratch, { recursive: true, mode: 0o711 });
    return new Workplace(scratch, outbound, log);
  }

  /** Gives all of it back. No step may run any more. */
  async close(): Promise<void> {
    this.http.close();
    // Its slot stays taken then; the sweep at the next start finds what is left of it.
    await this.leaving.end().catch((error: unknown) => {
      this.#log.error({ err: error }, "a step's sandbox was not removed");
    });
    await this.images.close();
    await rm(this.scratch, { recursive: true, force: true });
  }
}
