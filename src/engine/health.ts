import { get, type IncomingMessage } from "node:http";
import { connect } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import {
  afterCheck,
  type Health,
  type HealthProbe,
  type HealthSpec,
  type HealthState,
  nextCheckMs,
} from "../core/health.ts";
import type { ExecRequest, ExecResult } from "../isolation/exec.ts";

/** A running container as its checks see it. */
export interface Checked {
  id: string;
  run: number;
  /** Its address on this host. */
  address: string;
  spec: HealthSpec;
  /** What was recorded of this run. */
  health: Health;
  /** Milliseconds since the run began. */
  ranMs: number;
}

/** What the checks need of the worker. */
export interface HealthMeans {
  exec(id: string, request: ExecRequest): Promise<ExecResult>;
  /** Records a change, if the run still is the container's. `why`: of the last failure; null: it is healthy. */
  record(container: Checked, health: Health, why: string | null): Promise<void>;
  failed(error: unknown, id: string): void;
}

/** Kept of what a failed check's program said, characters. */
const maxOutput = 300;

/**
 * The health checks of this host's running containers, each in its own rhythm. What a check finds changes the row only
 * when the container's health changes with it.
 */
export class HealthChecks {
  readonly #means: HealthMeans;
  readonly #watched = new Map<string, { run: number; abort: AbortController }>();

  constructor(means: HealthMeans) {
    this.#means = means;
  }

  /** Checks a container from now on, until it is forgotten. Idempotent for one run of it. */
  watch(container: Checked): void {
    if (this.#watched.get(container.id)?.run === container.run) return;
    this.forget(container.id);
    const abort = new AbortController();
    this.#watched.set(container.id, { run: container.run, abort });
    this.#check(container, abort.signal).catch((error: unknown) => {
      if (abort.signal.aborted) return;
      // Looked at again at the container's next wake.
      this.#watched.delete(container.id);
      this.#means.failed(error, container.id);
    });
  }

  forget(id: string): void {
    this.#watched.get(id)?.abort.abort();
    this.#watched.delete(id);
  }

  close(): void {
    for (const id of [...this.#watched.keys()]) this.forget(id);
  }

  async #check(container: Checked, signal: AbortSignal): Promise<void> {
    const { spec } = container;
    const begun = performance.now() - container.ranMs;
    let state: HealthState = { health: container.health, failures: 0 };
    for (;;) {
      const why = await this.#probe(
        container,
        AbortSignal.any([signal, AbortSignal.timeout(spec.timeoutSeconds * 1000)]),
      );
      signal.throwIfAborted();
      const next = afterCheck(state, why === null, spec, performance.now() - begun);
      if (next.health !== state.health) await this.#means.record(container, next.health, why);
      state = next;
      await sleep(nextCheckMs(state, spec, performance.now() - begun), undefined, { signal, ref: false });
    }
  }

  /** One check; answers why it failed, null when it passed. */
  async #probe(container: Checked, signal: AbortSignal): Promise<string | null> {
    const { probe, timeoutSeconds } = container.spec;
    const late = `there was no answer within ${timeoutSeconds} s`;
    try {
      if ("command" in probe) return await this.#run(container, probe.command);
      const why = await ("http" in probe
        ? askHttp(container.address, probe.http, signal)
        : reach(container.address, probe.tcp, signal));
      return why !== null && signal.aborted ? `${nameOf(probe)}: ${late}` : why;
    } catch (error) {
      return error instanceof Error ? error.message : String(error);
    }
  }

  async #run(container: Checked, args: readonly string[]): Promise<string | null> {
    const { timeoutSeconds } = container.spec;
    const { exitCode, stdout, stderr, timedOut } = await this.#means.exec(container.id, { args, timeoutSeconds });
    if (timedOut) return `the check took longer than ${timeoutSeconds} s`;
    if (exitCode === 0) return null;
    const said = (stderr.trim() === "" ? stdout : stderr).trim().slice(-maxOutput);
    return `the check ended with exit code ${exitCode}${said === "" ? "" : `: ${said}`}`;
  }
}

const nameOf = (probe: Exclude<HealthProbe, { command: string[] }>) =>
  "http" in probe ? `GET ${probe.http.path} on port ${probe.http.port}` : `port ${probe.tcp.port}`;

/** Only the answer's status counts; nothing of its body is read, and no redirect is followed. */
function askHttp(host: string, http: { port: number; path: string }, signal: AbortSignal): Promise<string | null> {
  const { promise, resolve } = Promise.withResolvers<string | null>();
  const what = nameOf({ http });
  const request = get({
    host,
    port: http.port,
    path: http.path,
    signal,
    agent: false,
    headers: { "user-agent": "berth" },
  });
  const answered = (response: IncomingMessage) => {
    const status = response.statusCode ?? 0;
    resolve(status >= 200 && status < 400 ? null : `${what} answered ${status}`);
    request.destroy();
  };
  request.once("response", answered);
  // 101, which was not asked for, comes as neither an answer nor an error.
  request.once("upgrade", answered);
  request.once("error", (error) => resolve(`${what}: ${reasonOf(error)}`));
  return promise;
}

function reach(host: string, tcp: { port: number }, signal: AbortSignal): Promise<string | null> {
  const { promise, resolve } = Promise.withResolvers<string | null>();
  const socket = connect({ host, port: tcp.port, signal });
  socket.once("connect", () => {
    resolve(null);
    socket.destroy();
  });
  socket.once("error", (error) => resolve(`${nameOf({ tcp })}: ${reasonOf(error)}`));
  return promise;
}

/** A connection's error in words that don't name the container's address. */
function reasonOf(error: Error): string {
  const code = "code" in error ? String(error.code) : "";
  return code === "ECONNREFUSED" ? "nothing listens there" : code === "" ? error.message : code;
}
