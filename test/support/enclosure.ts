import { type ChildProcess, execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { promisify } from "node:util";
import { dyingWithUs } from "./ownership.ts";

/**
 * Network, IPC and UTS namespaces of the test's, which a worker inside takes for its host's: a container that shares them
 * with its host is shown nothing of the real one.
 */
export class Enclosure {
  static readonly hostname = "enclosure";
  readonly #holder: ChildProcess;
  readonly #others: ChildProcess[] = [];
  /** What goes before a command that is to run inside. */
  readonly enter: string[];

  private constructor(holder: ChildProcess) {
    this.#holder = holder;
    this.enter = ["/usr/bin/nsenter", `--target=${String(holder.pid)}`, "--net", "--ipc", "--uts", "--"];
  }

  static async create(): Promise<Enclosure> {
    const script = `hostname ${Enclosure.hostname} && ip link set lo up && echo ready && exec sleep 3600`;
    const [file = "", ...args] = dyingWithUs(["unshare", "--net", "--ipc", "--uts", "sh", "-c", script]);
    const holder = spawn(file, args, {
      stdio: ["ignore", "pipe", "inherit"],
    });
    await once(createInterface({ input: holder.stdout }), "line");
    return new Enclosure(holder);
  }

  /** Runs a command to its end. */
  async run(...argv: string[]): Promise<string> {
    const [file = "", ...args] = [...this.enter, ...argv];
    return (await promisify(execFile)(file, args)).stdout;
  }

  /** Starts a program that lives as long as the enclosure; resolves with its first line. */
  async serve(...argv: string[]): Promise<string> {
    const [file = "", ...args] = dyingWithUs([...this.enter, ...argv]);
    const program = spawn(file, args, { stdio: ["ignore", "pipe", "inherit"] });
    this.#others.push(program);
    const [line] = (await once(createInterface({ input: program.stdout }), "line")) as [string];
    return line;
  }

  async end(): Promise<void> {
    const programs = [...this.#others, this.#holder].filter(
      ({ exitCode, signalCode }) => (exitCode ?? signalCode) === null,
    );
    const ends = programs.map((program) => once(program, "exit"));
    for (const program of programs) program.kill("SIGKILL");
    await Promise.all(ends);
  }
}
