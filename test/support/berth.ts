import { type ChildProcess, spawn } from "node:child_process";
import { chmodSync, mkdtempSync, readdirSync, readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { type Config, readConfig } from "../../src/config.ts";
import { claimPorts, freePort, Owned } from "./ownership.ts";

const ownClone = dirname(dirname(import.meta.dirname));

/** A start of the program, from its first line on. */
export class Run {
  readonly child: ChildProcess;
  readonly ended: Promise<number | null>;
  #text = "";
  #waiting: { pattern: RegExp; found: (match: RegExpExecArray) => void }[] = [];

  constructor(argv: readonly string[], env: Record<string, string>) {
    this.child = spawn(argv[0] ?? "", argv.slice(1), { env, stdio: ["ignore", "pipe", "pipe"] });
    const take = (chunk: Buffer) => {
      this.#text += chunk.toString();
      this.#waiting = this.#waiting.filter(({ pattern, found }) => {
        const match = pattern.exec(this.#text);
        if (match !== null) found(match);
        return match === null;
      });
    };
    this.child.stdout?.on("data", take);
    this.child.stderr?.on("data", take);
    this.ended = new Promise((resolve) => this.child.once("close", resolve));
  }

  /** All that it has printed. */
  get text(): string {
    return this.#text;
  }

  /** Resolves once it has printed what matches. @throws Error with all output when it ends without that */
  async until(pattern: RegExp): Promise<RegExpExecArray> {
    const found = new Promise<RegExpExecArray>((resolve) => {
      const match = pattern.exec(this.#text);
      if (match === null) this.#waiting.push({ pattern, found: resolve });
      else resolve(match);
    });
    const ended = this.ended.then((code) => {
      throw new Error(`it ended with ${String(code)} and never printed ${String(pattern)}:\n${this.#text}`);
    });
    return Promise.race([found, ended]);
  }

  /** Sends the signal and waits for the end. */
  async stop(signal: NodeJS.Signals = "SIGINT"): Promise<number | null> {
    this.child.kill(signal);
    return this.ended;
  }
}

/** An instance of its own: data directory, listening port and port range; its containers are no other instance's. */
export class Instance {
  readonly config: Config;
  readonly #clone: string;
  readonly #owned: Owned;
  readonly #env: Record<string, string>;
  readonly #enter: readonly string[];
  readonly #runs: Run[] = [];

  private constructor(clone: string, owned: Owned, env: Record<string, string>, enter: readonly string[]) {
    this.#clone = clone;
    this.#owned = owned;
    this.#enter = enter;
    this.#env = { PATH: process.env.PATH ?? "", ...env };
    this.config = readConfig(env);
  }

  /** `enter`: argv before a program, such as one that enters a network namespace. */
  static create(env: Record<string, string> = {}, clone: string = ownClone, enter: readonly string[] = []): Instance {
    const dir = mkdtempSync(join(tmpdir(), "berth-e2e-"));
    chmodSync(dir, 0o711);
    const { first, last } = claimPorts();
    const settings = {
      BERTH_DATA_DIR: join(dir, "data"),
      BERTH_LISTEN: `127.0.0.1:${freePort()}`,
      BERTH_PORT_RANGE: `${first}-${last}`,
      BERTH_DEMO: "0",
      ...env,
    };
    const { instance, runDir, dataDir, runtime } = readConfig(settings);
    const owned = Owned.record({ directory: dir, sandboxes: { instance, runDir, dataDir, runtime } });
    return new Instance(clone, owned, settings, enter);
  }

  get url(): string {
    return `http://${this.config.listen.host}:${String(this.config.listen.port)}`;
  }

  get token(): string {
    return readFileSync(join(this.config.dataDir, "token"), "utf8").trim();
  }

  /** Starts the supervisor; `until(/Ready/)` on it waits. */
  start(env: Record<string, string> = {}): Run {
    const run = new Run(this.#argv("start"), { ...this.#env, ...env });
    this.#runs.push(run);
    return run;
  }

  /** `npm run down`. */
  async down(): Promise<Run> {
    const run = new Run(this.#argv("down"), this.#env);
    await run.ended;
    return run;
  }

  #argv(command: string): string[] {
    return [...this.#enter, process.execPath, join(this.#clone, "infra/bootstrap.mjs"), command];
  }

  /** Ends and removes all of it, also when a test has failed half-way. */
  async destroy(): Promise<void> {
    const run = await this.down();
    for (const each of this.#runs) await each.stop("SIGKILL");
    if (run.child.exitCode !== 0) throw new Error(`down failed: ${run.text}`);
    await this.#owned.remove();
  }
}

/** A process as /proc shows it. */
export interface ProcessView {
  pid: number;
  parent: number;
  uid: number;
  command: string;
}

/** The processes that run, except those that nobody has waited for. */
export function processes(): ProcessView[] {
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .flatMap((name) => {
      try {
        const status = readFileSync(`/proc/${name}/status`, "utf8");
        if (/^State:\s+[ZX]/m.test(status)) return [];
        const field = (key: string) => Number(new RegExp(`^${key}:\\s+(\\d+)`, "m").exec(status)?.[1]);
        const command = readFileSync(`/proc/${name}/cmdline`, "utf8").replaceAll("\0", " ").trim();
        return [{ pid: Number(name), parent: field("PPid"), uid: field("Uid"), command }];
      } catch {
        return [];
      }
    });
}
