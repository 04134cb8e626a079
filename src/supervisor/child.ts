import { type ChildProcess, spawn } from "node:child_process";
import { awaitPredecessor, recordProcess } from "./predecessor.ts";

/** A role that runs as a process of its own. */
export interface ChildOptions {
  name: string;
  /** argv; the programs before the last replace themselves with the next, so that the pid stays the same. */
  argv: readonly string[];
  env: Readonly<Record<string, string>>;
  /** Tells a later supervisor about a child that this one could not end. */
  pidFile: string;
  /** Resolves when the child may begin; until then it loads its code. */
  begin: Promise<void>;
  /** What a person should know: an unexpected end, a new start. */
  say: (line: string) => void;
}

/** A child that stays up at least this long starts again at once when it ends, others ever later. */
const stableMs = 60_000;
/** After SIGTERM a child has this long to end by itself. */
const stopMs = 10_000;

/**
 * Keeps one child running (its side is supervised.ts). Over its IPC channel it is sent a message when it may begin, and
 * sends one once it does its work; it ends cleanly on SIGTERM, or when the channel does. One that ends by itself is
 * started again: after 100 ms, doubling to 10 s as long as that keeps happening.
 */
export class Child {
  readonly #options: ChildOptions;
  #process: ChildProcess | null = null;
  #ended: Promise<void> = Promise.resolve();
  #stopping = false;
  #retry: NodeJS.Timeout | undefined;
  #failures = 0;

  constructor(options: ChildOptions) {
    this.#options = options;
  }

  get pid(): number | undefined {
    return this.#process?.pid;
  }

  /** Starts it. @throws Error when it ends before it was ready; then it stays ended. */
  async start(): Promise<void> {
    const { argv, pidFile } = this.#options;
    const [program = "", ...args] = argv;
    await awaitPredecessor(pidFile);
    const started = performance.now();
    const child = spawn(program, args, {
      cwd: "/",
      env: this.#options.env,
      stdio: ["ignore", "inherit", "inherit", "ipc"],
      // A terminal's Ctrl-C is for the supervisor, which then stops its children in their order.
      detached: true,
    });
    this.#process = child;
    if (child.pid !== undefined) recordProcess(pidFile, child.pid);
    void this.#options.begin.then(() => {
      if (child.connected) child.send({ begin: true });
    });
    const end = new Promise<string>((resolve) => {
      child.once("error", (error) => {
        resolve(error.message);
      });
      child.once("exit", (code, signal) => {
        resolve(signal ?? `exit code ${String(code)}`);
      });
    });
    this.#ended = end.then(() => undefined);
    const ready = new Promise<null>((resolve) => {
      child.once("message", () => {
        resolve(null);
      });
    });
    const early = await Promise.race([ready, end]);
    if (early !== null) throw new Error(`the ${this.#options.name} ended before it was ready (${early})`);
    void end.then((how) => {
      if (performance.now() - started > stableMs) this.#failures = 0;
      this.#restart(how);
    });
  }

  #restart(how: string): void {
    if (this.#stopping) return;
    const delay = Math.min(100 * 2 ** this.#failures++, 10_000);
    this.#options.say(`the ${this.#options.name} ended (${how}); it starts again in ${String(delay)} ms`);
    this.#retry = setTimeout(() => {
      this.start().then(
        () => {
          this.#options.say(`the ${this.#options.name} is ready again`);
        },
        (error: unknown) => {
          this.#restart(error instanceof Error ? error.message : String(error));
        },
      );
    }, delay);
  }

  /** Ends it for good; returns when it has ended. */
  async stop(): Promise<void> {
    this.#stopping = true;
    clearTimeout(this.#retry);
    this.#process?.kill("SIGTERM");
    const timer = setTimeout(() => this.#process?.kill("SIGKILL"), stopMs);
    await this.#ended;
    clearTimeout(timer);
  }
}
