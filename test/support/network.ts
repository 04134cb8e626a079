import { type ChildProcessWithoutNullStreams, execFile, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import type { PublishedPort } from "../../src/isolation/apply/firewall.ts";
import type { Protection } from "../../src/isolation/plan/firewall.ts";
import { type NetworkScope, slotNetwork } from "../../src/isolation/plan/network.ts";
import { dyingWithUs, Owned } from "./ownership.ts";

/** What a command printed and how it ended. */
export interface Ran {
  code: number;
  out: string;
}

const nodeBinary = process.execPath;
const workerFile = join(import.meta.dirname, "network-worker.ts");

function run(argv: readonly string[]): Promise<Ran> {
  const [file = "", ...args] = argv;
  return new Promise((resolve) => {
    execFile(file, args, { timeout: 20_000 }, (error, stdout, stderr) => {
      resolve({ code: error === null ? 0 : typeof error.code === "number" ? error.code : -1, out: stdout + stderr });
    });
  });
}

/** A worker's network half, in a process of its own. */
class TestWorker {
  readonly #process: ChildProcessWithoutNullStreams;
  readonly #lines: AsyncIterator<string>;
  readonly pid: number;

  private constructor(process: ChildProcessWithoutNullStreams) {
    this.#process = process;
    this.#lines = createInterface({ input: process.stdout })[Symbol.asyncIterator]();
    this.pid = process.pid ?? 0;
  }

  static async start(netPid: number, start: object): Promise<TestWorker> {
    const args = [`--net=/proc/${netPid}/ns/net`, nodeBinary, workerFile, JSON.stringify(start)];
    const worker = new TestWorker(spawn("nsenter", args));
    worker.#process.stderr.on("data", (text: Buffer) => process.stderr.write(text));
    await worker.#lines.next();
    return worker;
  }

  /** @throws Error with the `code` that the call's error had. */
  async call<T>(call: string, ...args: unknown[]): Promise<T> {
    this.#process.stdin.write(`${JSON.stringify({ call, args })}\n`);
    const { value } = (await this.#lines.next()) as IteratorResult<string, string>;
    const answer = JSON.parse(value) as { value: T; error?: { message: string; code?: string } };
    if (answer.error !== undefined) throw Object.assign(new Error(answer.error.message), { code: answer.error.code });
    return answer.value;
  }

  async kill(): Promise<void> {
    this.#process.kill("SIGKILL");
    if (this.#process.exitCode === null && this.#process.signalCode === null) await once(this.#process, "exit");
  }
}

/** A network namespace of the test's, held by a process that sleeps. */
class TestNamespace {
  readonly #holder: ChildProcessWithoutNullStreams;

  private constructor(holder: ChildProcessWithoutNullStreams) {
    this.#holder = holder;
  }

  static async create(): Promise<TestNamespace> {
    const [file = "", ...args] = dyingWithUs(["unshare", "--net", "sh", "-c", "echo ready; exec sleep 3600"]);
    const holder = spawn(file, args);
    await once(holder.stdout, "data");
    const namespace = new TestNamespace(holder);
    await namespace.run("ip", "link", "set", "lo", "up");
    return namespace;
  }

  get pid(): number {
    return this.#holder.pid ?? 0;
  }

  run(...argv: string[]): Promise<Ran> {
    return run(["nsenter", `--net=/proc/${this.pid}/ns/net`, ...argv]);
  }

  end(): void {
    this.#holder.kill("SIGKILL");
  }
}

/** Addresses of the namespace that stands for everything outside of the host, and the host's own. */
export const outside = {
  public4: "203.0.113.9",
  public6: "2001:db8:113::9",
  closed: ["10.1.1.1", "192.168.7.7", "172.20.0.3", "100.64.0.5", "169.254.169.254", "fd99::9"],
};
export const host = { public4: "203.0.113.1", public6: "2001:db8:113::1" };

/** How a host's firewall is set up. */
export interface NetworkOptions {
  without?: Protection[];
  resolvers?: string[];
  allowed?: string[];
}

/**
 * A host with containers and an outside, all in namespaces of the test's own: nothing leaves the machine. Containers
 * have no processes but those that a test starts inside their network.
 */
export class TestNetwork {
  readonly scope: NetworkScope = { instance: randomBytes(3).toString("hex"), block: 3 };
  readonly #owned = Owned.directory("berth-network-");
  readonly #servers: ChildProcessWithoutNullStreams[] = [];
  readonly #inside = new Map<number, string>();
  readonly outside: TestNamespace;
  readonly host: TestNamespace;
  worker!: TestWorker;

  private constructor(outside: TestNamespace, host: TestNamespace) {
    this.outside = outside;
    this.host = host;
  }

  static async create(options: NetworkOptions = {}): Promise<TestNetwork> {
    const network = new TestNetwork(await TestNamespace.create(), await TestNamespace.create());
    await network.#connect();
    await network.startWorker(options);
    return network;
  }

  async #connect(): Promise<void> {
    const must = async (namespace: TestNamespace, text: string): Promise<void> => {
      const { code, out } = await namespace.run(...text.split(" "));
      if (code !== 0) throw new Error(`${text}: ${out}`);
    };
    await must(this.host, `ip link add uplink type veth peer name uplink netns ${this.outside.pid}`);
    await must(this.outside, "ip link set uplink up");
    await must(this.host, "ip link set uplink up");
    await must(this.host, `ip addr add ${host.public4}/24 dev uplink`);
    await must(this.host, `ip addr add ${host.public6}/64 dev uplink nodad`);
    await must(this.outside, `ip addr add ${outside.public4}/24 dev uplink`);
    await must(this.outside, `ip addr add ${outside.public6}/64 dev uplink nodad`);
    for (const address of outside.closed) await must(this.outside, `ip addr add ${address} dev uplink`);
    await must(this.host, `ip route add default via ${outside.public4}`);
    await must(this.host, `ip route add default via ${outside.public6}`);
    // The outside knows the way to containers, as a neighbour on the same wire could.
    await must(this.outside, `ip route add 10.88.0.0/16 via ${host.public4}`);
    await must(this.outside, `ip route add fd00::/8 via ${host.public6}`);
    // It must not answer for its closed addresses only: they are the host's to reach by the default route.
  }

  async startWorker(options: NetworkOptions = {}): Promise<void> {
    const start = { scope: this.scope, without: [], resolvers: [], allowed: [], ...options };
    this.worker = await TestWorker.start(this.host.pid, start);
  }

  /** A container of a project, with nothing running. */
  async container(slot: number, project: string, egress = true): Promise<void> {
    const fd = await this.worker.call<number>("create", slot);
    this.#inside.set(slot, `/proc/${this.worker.pid}/fd/${fd}`);
    await this.worker.call("admit", slot, project, egress);
  }

  addresses(slot: number): { ipv4: string; ipv6: string; veth: string } {
    return slotNetwork(this.scope, slot);
  }

  /** Runs a program in a container's network, with all capabilities there: more than any container has. */
  inside(slot: number, ...argv: string[]): Promise<Ran> {
    return run(["nsenter", `--net=${this.#inside.get(slot) ?? ""}`, ...argv]);
  }

  /** Counts, in a container's network or the host's, packets that come in and match; returns how to read the count. */
  async count(where: "host" | number, match: string): Promise<() => Promise<number>> {
    const there = (...argv: string[]): Promise<Ran> =>
      where === "host" ? this.host.run(...argv) : this.inside(where, ...argv);
    // After every other chain of the hook has let it through.
    const chain = "add chain inet count c { type filter hook input priority 300; }";
    await there("nft", `add table inet count; ${chain}; add rule inet count c ${match} counter`);
    return async () => {
      const { out } = await there("nft", "list", "table", "inet", "count");
      return Number(/packets (\d+)/.exec(out)?.[1]);
    };
  }

  state(): Promise<{ links: number[]; slots: number[]; ports: PublishedPort[] }> {
    return this.worker.call("state");
  }

  /** Serves HTTP on a port of the host, the outside or a container: the page is the name, /cgi-bin/peer the client. */
  async serve(where: "host" | "outside" | number, name: string, listen: string): Promise<void> {
    const directory = join(this.#owned.footprint.directory, `${String(where)}-${listen.replace(/[^\w.]/g, "_")}`);
    mkdirSync(join(directory, "cgi-bin"), { recursive: true });
    writeFileSync(join(directory, "index.html"), name);
    writeFileSync(join(directory, "cgi-bin", "peer"), '#!/bin/sh\necho\necho "$REMOTE_ADDR"\n', { mode: 0o755 });
    const net = typeof where === "number" ? this.#inside.get(where) : `/proc/${this[where].pid}/ns/net`;
    const server = spawn("nsenter", [`--net=${net ?? ""}`, "busybox", "httpd", "-f", "-p", listen, "-h", directory]);
    this.#servers.push(server);
    const port = listen.slice(listen.lastIndexOf(":") + 1);
    const listening = `:${Number(port).toString(16).toUpperCase().padStart(4, "0")} `;
    for (;;) {
      const { out } = await run(["nsenter", `--net=${net ?? ""}`, "cat", "/proc/net/tcp", "/proc/net/tcp6"]);
      if (out.split("\n").some((line) => line.includes(listening) && / 0A /.test(line))) return;
      if (server.exitCode !== null) throw new Error(`httpd ${listen} ended`);
    }
  }

  /** Kills everything and so removes the namespaces with all that is in them. */
  async end(): Promise<void> {
    for (const server of this.#servers) server.kill("SIGKILL");
    await this.worker.kill();
    this.host.end();
    this.outside.end();
    await this.#owned.remove();
  }
}

/** Arguments that fetch a page over HTTP, or fail within four seconds. */
export function get(address: string, port: number, path = ""): string[] {
  const name = address.includes(":") ? `[${address}]` : address;
  return ["timeout", "4", "busybox", "wget", "-q", "-O", "-", `http://${name}:${port}/${path}`];
}

/** Arguments that send one echo request and wait a second for the answer. */
export function ping(address: string, ...more: string[]): string[] {
  return ["busybox", "ping", "-c", "1", "-W", "1", ...more, address];
}

/** Arguments that send one datagram from a port of choice, or fail if the port is taken. */
export function datagram(fromPort: number, address: string, port: number): string[] {
  const script = `const s = require("node:dgram").createSocket("udp4");
    s.bind(${fromPort}, () => s.send("x", ${port}, "${address}", () => s.close()));`;
  return [nodeBinary, "-e", script];
}

/** Arguments that send a datagram to each of many ports of an address: to the kernel, as many connections. */
export function flood(address: string, ports: number): string[] {
  const script = `const s = require("node:dgram").createSocket("udp4");
    s.bind(0, async () => {
      for (let p = 1; p <= ${ports}; p++) await new Promise((sent) => s.send("x", p, "${address}", sent));
      s.close();
    });`;
  return [nodeBinary, "-e", script];
}
