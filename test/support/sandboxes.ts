import { type ChildProcessWithoutNullStreams, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { ensureMountNamespace } from "../../src/isolation/apply/host.ts";
import type { SandboxConfig } from "../../src/isolation/parts.ts";
import type { Protection } from "../../src/isolation/plan/protection.ts";
import type { SandboxState } from "../../src/isolation/probe.ts";
import { Sandboxes } from "../../src/isolation/sandbox.ts";
import type { SandboxSpec } from "../../src/isolation/sandbox-spec.ts";
import { leftovers } from "./leftovers.ts";
import { Owned } from "./ownership.ts";

const workerFile = join(import.meta.dirname, "sandbox-worker.ts");

/** What a test wants different from the plainest container. */
export type Wish = Partial<Omit<SandboxSpec, "process" | "limits">> & {
  process?: Partial<SandboxSpec["process"]>;
  limits?: Partial<SandboxSpec["limits"]>;
};

/** An instance of Berth's sandboxes with a directory of its own and a worker that can be killed and started again. */
export class TestHost {
  readonly config: SandboxConfig & { runtime: "crun" | "runc" | null };
  /** A layer with busybox and account files; a directory, which stands for an EROFS image of it. */
  readonly layer: string;
  readonly #owned: Owned;
  #enter: string[];
  #worker: TestWorker | null = null;
  #count = 0;

  private constructor(config: TestHost["config"], owned: Owned, enter: string[]) {
    this.config = config;
    this.#owned = owned;
    this.layer = `${config.dataDir}/busybox`;
    this.#enter = enter;
  }

  /** @param within see Enclosure.enter: the namespaces that the worker takes for its host's */
  static async create(
    runtime: "crun" | "runc" | null = null,
    { within = [] }: { within?: string[] } = {},
  ): Promise<TestHost> {
    const instance = randomBytes(3).toString("hex");
    const dataDir = mkdtempSync(`${tmpdir()}/berth-test-`);
    chmodSync(dataDir, 0o711);
    const config = { instance, dataDir, runDir: `/run/berth/${instance}`, runtime };
    const owned = Owned.record({ directory: dataDir, sandboxes: config });
    const host = new TestHost(config, owned, [...within, ...(await ensureMountNamespace(config))]);
    makeBusybox(host.layer);
    return host;
  }

  /** Starts a worker, if there is none, and sweeps with `live`. */
  async worker(live: { id: string; slot: number | null }[] = [], failpoint: string | null = null): Promise<TestWorker> {
    if (this.#worker === null || this.#worker.ended) {
      const argument = JSON.stringify({ ...this.config, failpoint });
      this.#worker = await TestWorker.start([...this.#enter, process.execPath, workerFile, argument]);
      await this.#worker.call("sweep", live);
    }
    return this.#worker;
  }

  /** Starts one more worker beside the first. */
  async second(): Promise<void> {
    const argument = JSON.stringify(this.config);
    await (await TestWorker.start([...this.#enter, process.execPath, workerFile, argument], "ignore")).stop();
  }

  /** A spec that a container of the test image can be started with. */
  spec(slot: number, wish: Wish = {}): SandboxSpec {
    const id = wish.id ?? `ctr_${String(this.#count++)}${this.config.instance}`;
    const log = `${this.config.dataDir}/logs/${id}`;
    mkdirSync(`${this.config.dataDir}/logs`, { recursive: true });
    return {
      id,
      slot,
      projectId: "prj_test",
      layers: [this.layer],
      hostname: "test",
      readOnlyRootfs: false,
      profile: "container",
      capabilities: { add: [], drop: [] },
      network: "project",
      mounts: [],
      log,
      ...wish,
      process: {
        args: ["/bin/sleep", "3600"],
        env: ["PATH=/bin"],
        cwd: "/",
        user: "",
        tty: false,
        stdin: false,
        ...wish.process,
      },
      limits: { cpus: 1, memory: 64 * 2 ** 20, pids: 64, disk: 64 * 2 ** 20, ...wish.limits },
    };
  }

  /** Starts a container. */
  async start(wish: Wish = {}, without: Protection[] = []): Promise<SandboxSpec & { pid: number }> {
    const worker = await this.worker();
    const spec = this.spec(await worker.call<number>("takeSlot"), wish);
    try {
      const { pid } = await worker.call<{ pid: number }>("start", spec, without);
      return { ...spec, pid };
    } catch (error) {
      await this.remove(spec);
      throw error;
    }
  }

  /** Runs a shell script in a container to its end, and removes it. */
  async shell(
    script: string,
    wish: Wish = {},
    without: Protection[] = [],
  ): Promise<{ out: string; end: SandboxState }> {
    return this.run(["/bin/sh", "-c", script], wish, without);
  }

  async run(args: string[], wish: Wish = {}, without: Protection[] = []): Promise<{ out: string; end: SandboxState }> {
    const worker = await this.worker();
    const spec = await this.start({ ...wish, process: { ...wish.process, args } }, without);
    try {
      await worker.exited(spec.id);
      return { out: readLog(spec.log), end: await worker.call("probe", spec.id) };
    } finally {
      await this.remove(spec);
    }
  }

  /** Removes a container with all that it has. */
  async remove({ id, slot }: { id: string; slot: number }): Promise<void> {
    const worker = await this.worker();
    await worker.call("remove", id, slot);
    await worker.call("freeSlot", slot);
  }

  /** How many slots are ready for any container; the pool is full at 8. */
  preparedSlots(): number {
    const slots = `${this.config.runDir}/slots`;
    const has = (slot: string, file: string) => existsSync(`${slots}/${slot}/${file}`);
    return readdirSync(slots).filter((slot) => has(slot, "monitor.json") && !has(slot, "owner.json")).length;
  }

  /** Kills the worker and takes the instance down; the next worker finds a host as after a fresh start. */
  async down(): Promise<void> {
    await this.#worker?.kill();
    await Sandboxes.down(this.config, 0);
    const down = leftovers(this);
    this.#enter = await ensureMountNamespace(this.config);
    if (down.some((line) => !line.startsWith(`file ${this.config.dataDir}/`))) throw new Error(down.join("\n"));
  }

  /** Ends the worker as it would end by itself. */
  async stop(): Promise<void> {
    await this.#worker?.stop();
    this.#worker = null;
  }

  /** Removes all of the instance, whatever state it is in. */
  async destroy(): Promise<void> {
    await this.#worker?.kill();
    await this.#owned.remove();
  }
}

export class TestWorker {
  readonly #process: ChildProcessWithoutNullStreams;
  readonly #answers = new Map<
    number,
    (answer: { value?: unknown; error?: { message: string; code?: string } }) => void
  >();
  readonly #exits = new Set<string>();
  readonly #waiting = new Map<string, () => void>();
  #number = 0;
  ended = false;
  readonly closed: Promise<unknown>;

  private constructor(process: ChildProcessWithoutNullStreams) {
    this.#process = process;
    this.closed = once(process, "close");
  }

  static async start([file = "", ...args]: string[], errors: "show" | "ignore" = "show"): Promise<TestWorker> {
    const child = spawn(file, args);
    const worker = new TestWorker(child);
    child.stderr.on("data", (text: Buffer) => errors === "show" && process.stderr.write(text));
    const ready = Promise.withResolvers<void>();
    createInterface({ input: child.stdout }).on("line", (line) => {
      const message = JSON.parse(line) as { ready?: true; exit?: string; number?: number; error?: { message: string } };
      if (message.ready === true) ready.resolve();
      else if (message.exit !== undefined) {
        worker.#exits.add(message.exit);
        worker.#waiting.get(message.exit)?.();
      } else worker.#answers.get(message.number ?? -1)?.(message);
    });
    child.on("close", () => {
      worker.ended = true;
      ready.reject(new Error("the worker did not start"));
      for (const answer of worker.#answers.values())
        answer({ error: { message: "the worker was killed", code: "killed" } });
    });
    await ready.promise;
    return worker;
  }

  get pid(): number {
    return this.#process.pid ?? 0;
  }

  /** @throws Error with the `code` that the call's error had, or `killed` */
  async call<T>(call: string, ...args: unknown[]): Promise<T> {
    const number = this.#number++;
    const answered = new Promise<{ value?: unknown; error?: { message: string; code?: string } }>((resolve) => {
      this.#answers.set(number, resolve);
    });
    this.#process.stdin.write(`${JSON.stringify({ number, call, args })}\n`);
    const answer = await answered;
    this.#answers.delete(number);
    if (answer.error !== undefined) throw Object.assign(new Error(answer.error.message), answer.error);
    return answer.value as T;
  }

  /** Resolves when the container's end was told. */
  async exited(id: string): Promise<void> {
    if (this.#exits.has(id)) return;
    await new Promise<void>((resolve) => this.#waiting.set(id, resolve));
  }

  async stop(): Promise<void> {
    if (this.ended) return;
    this.#process.stdin.end();
    await this.closed;
  }

  async kill(): Promise<void> {
    if (this.ended) return;
    this.#process.kill("SIGKILL");
    await this.closed;
  }
}

/** What a monitor wrote, without times and stream names; lines that it had to split are joined. */
export function readLog(path: string): string {
  if (!existsSync(path)) return "";
  return readFileSync(path, "utf8")
    .split("\n")
    .map((line) => {
      const [, , tag = "", ...rest] = line.split(" ");
      return rest.join(" ") + (tag === "F" ? "\n" : "");
    })
    .join("");
}

const applets =
  "sh cat chmod chown chroot cp cut dd df echo env find free grep head hostname id ifconfig ip kill ln ls mkdir mkfifo " +
  "mknod mount mv nc nproc nsenter od ping printf ps pwd readlink rm rmdir sed seq sleep sort stat su sync sysctl tail tee " +
  "test time timeout touch tr true umount uname unshare usleep wc wget xargs yes";

function makeBusybox(path: string): void {
  for (const directory of ["bin", "etc", "tmp", "root", "home/app"])
    mkdirSync(`${path}/${directory}`, { recursive: true });
  chmodSync(path, 0o755);
  chmodSync(`${path}/tmp`, 0o1777);
  copyFileSync("/bin/busybox", `${path}/bin/busybox`);
  for (const applet of applets.split(" ")) symlinkSync("busybox", `${path}/bin/${applet}`);
  writeFileSync(
    `${path}/etc/passwd`,
    "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\nfar:x:70000:0::/:/bin/sh\n",
  );
  writeFileSync(`${path}/etc/group`, "root:x:0:\napp:x:1000:\nextra:x:1001:app\n");
  writeFileSync(`${path}/bin/plain`, "not a program\n");
}
