import { type ChildProcess, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { chmodSync, mkdirSync, mkdtempSync, readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Config, readConfig } from "../../src/config.ts";
import { FileBlobs } from "../../src/image/file-blobs.ts";
import { writeTar } from "../../src/image/tar-write.ts";
import { ensureMountNamespace } from "../../src/isolation/apply/host.ts";
import { type Answer, ask, createApi, type TestApi, type TestProject } from "./api.ts";
import { collect, entry } from "./image.ts";
import { claimPorts, Owned } from "./ownership.ts";

const workerFile = join(import.meta.dirname, "../../src/worker.ts");

/** The API in this process and the real worker in its own, over one database: the worker can be killed and started. */
export class DrivenHost {
  readonly api: TestApi;
  readonly project: TestProject;
  readonly config: Config;
  readonly #owned: Owned;
  readonly #env: Record<string, string>;
  readonly #enter: string[];
  #worker: ChildProcess | null = null;

  private constructor(api: TestApi, project: TestProject, owned: Owned, env: Record<string, string>, enter: string[]) {
    this.api = api;
    this.project = project;
    this.#owned = owned;
    this.config = readConfig(env);
    this.#env = env;
    this.#enter = enter;
  }

  /** With ten ports to publish. */
  static async create(socketDir: string, more: Record<string, string> = {}): Promise<DrivenHost> {
    const api = await createApi(socketDir);
    const dataDir = mkdtempSync(join(tmpdir(), "berth-test-host-"));
    chmodSync(dataDir, 0o711);
    for (const name of ["blobs", "worker"]) mkdirSync(join(dataDir, name), { mode: 0o711 });
    api.services.blobs = new FileBlobs(join(dataDir, "blobs"));
    const { first } = claimPorts();
    const env = {
      PATH: process.env["PATH"] ?? "",
      BERTH_DATA_DIR: dataDir,
      BERTH_DATABASE_URL: `postgres://postgres@${encodeURIComponent(socketDir)}/${api.database.name}`,
      BERTH_SECRET_KEY: api.services.secretKey,
      BERTH_HOST_NAME: `host-${randomBytes(4).toString("hex")}`,
      BERTH_PORT_RANGE: `${first}-${first + 9}`,
      BERTH_LOG_LEVEL: "error",
      ...more,
    };
    const { instance, runDir, runtime } = readConfig(env);
    const owned = Owned.record({ directory: dataDir, sandboxes: { instance, runDir, dataDir, runtime } });
    const enter = await ensureMountNamespace({ runDir });
    return new DrivenHost(api, await api.project("default"), owned, env, enter);
  }

  /** The first of the ten ports. */
  get firstPort(): number {
    return this.config.portRange.first;
  }

  /** Starts the worker and waits until it does its work, or until it has ended by its failpoint. */
  async start(failpoint = ""): Promise<void> {
    const argv = [...this.#enter, process.execPath, workerFile];
    const env = { ...this.#env, BERTH_FAILPOINT: failpoint };
    const worker = spawn(argv[0] ?? "", argv.slice(1), { env, stdio: ["ignore", "inherit", "inherit", "ipc"] });
    this.#worker = worker;
    worker.send({ begin: true });
    const ended = once(worker, "exit");
    const ready = await Promise.race([once(worker, "message").then(() => true), ended.then(() => false)]);
    if (!ready && worker.signalCode !== "SIGKILL") throw new Error("the worker ended before it was ready");
  }

  /** Resolves when the worker has killed itself. */
  async killed(): Promise<void> {
    const worker = this.#worker;
    if (worker !== null && worker.exitCode === null && worker.signalCode === null) await once(worker, "exit");
    if (worker?.signalCode !== "SIGKILL") throw new Error(`the worker ended by ${String(worker?.signalCode)}`);
  }

  /** Sends the worker a signal that does not end it. */
  signal(signal: "SIGSTOP" | "SIGCONT"): void {
    this.#worker?.kill(signal);
  }

  /** Ends the worker; containers stay. */
  async stop(signal: NodeJS.Signals = "SIGTERM"): Promise<void> {
    const worker = this.#worker;
    if (worker === null || worker.exitCode !== null || worker.signalCode !== null) return;
    worker.kill(signal);
    await once(worker, "exit");
  }

  /** Asks the API as a project's admin. */
  ask<T>(
    method: string,
    path: string,
    body?: unknown,
    headers: Record<string, string> = {},
    project = this.project,
  ): Promise<Answer<T>> {
    return ask<T>(this.api.app, project.tokens.admin, method, path, body, headers);
  }

  /** Builds an image with busybox, under this name. */
  async buildBusybox(tag: string, project = this.project): Promise<void> {
    const dockerfile = 'FROM scratch\nCOPY busybox /bin/busybox\nRUN ["/bin/busybox","--install","-s","/bin"]\n';
    const busybox = readFileSync("/bin/busybox");
    const tar = await collect(
      writeTar([entry("Dockerfile", { content: dockerfile }), entry("busybox", { content: busybox, mode: 0o755 })]),
    );
    const response = await this.api.app.request(`/v1/builds?tag=${encodeURIComponent(tag)}`, {
      method: "POST",
      headers: {
        authorization: `Bearer ${project.tokens.admin}`,
        "content-type": "application/x-tar",
        prefer: "wait=60",
      },
      body: tar,
    });
    const build = (await response.json()) as { status: string; error: unknown };
    if (build.status !== "succeeded") throw new Error(`the build ended: ${JSON.stringify(build)}`);
  }

  /** Removes all of it, whatever state it is in. */
  async destroy(): Promise<void> {
    await this.stop("SIGKILL");
    await this.#owned.remove();
    await this.api.close();
  }
}
