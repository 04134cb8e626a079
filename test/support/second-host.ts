import { type ChildProcessWithoutNullStreams, execFile, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { claimNumber, dyingWithUs } from "./ownership.ts";

/**
 * A second machine, as far as networks go: a namespace with a wire to this one, and a third that reaches it by another
 * wire and stands for the clients out there. Nothing leaves the machine.
 */
export class SecondNetwork {
  readonly #second: Namespace;
  readonly #outside: Namespace;
  /** This machine's address on the wire, the second one's, and the second one's towards the outside. */
  readonly here: string;
  readonly there: string;
  readonly public = "203.0.113.2";

  private constructor(second: Namespace, outside: Namespace, here: string, there: string) {
    this.#second = second;
    this.#outside = outside;
    this.here = here;
    this.there = there;
  }

  static async create(): Promise<SecondNetwork> {
    const [second, outside] = [await Namespace.create(), await Namespace.create()];
    // Of the block for benchmarks (RFC 2544), so that no route of the machine is in the way.
    const net = `198.18.${claimNumber("subnet", 256)}`;
    const network = new SecondNetwork(second, outside, `${net}.1`, `${net}.2`);
    const link = `bt${randomBytes(4).toString("hex")}`;
    await must(`ip link add ${link} type veth peer name uplink netns ${String(second.pid)}`);
    await must(`ip addr add ${network.here}/30 dev ${link}`);
    await must(`ip link set ${link} up`);
    await must(`ip addr add ${network.there}/30 dev uplink`, second);
    await must("ip link set uplink up", second);
    await must(`ip link add public type veth peer name uplink netns ${String(outside.pid)}`, second);
    await must(`ip addr add ${network.public}/24 dev public`, second);
    await must("ip link set public up", second);
    await must("ip addr add 203.0.113.9/24 dev uplink", outside);
    await must("ip link set uplink up", outside);
    return network;
  }

  /** argv before a program that makes it run on the second machine. */
  get enter(): readonly string[] {
    return this.#second.enter;
  }

  /** What a client out there gets from a URL. @throws Error when there is no answer */
  fetch(url: string): Promise<string> {
    return run([...this.#outside.enter, "timeout", "5", "busybox", "wget", "-q", "-O", "-", url]);
  }

  /** Kills what holds the namespaces; the wires go with them. */
  end(): void {
    this.#second.end();
    this.#outside.end();
  }
}

class Namespace {
  readonly #holder: ChildProcessWithoutNullStreams;

  private constructor(holder: ChildProcessWithoutNullStreams) {
    this.#holder = holder;
  }

  static async create(): Promise<Namespace> {
    const script = "ip link set lo up; echo ready; exec sleep 3600";
    const [file = "", ...args] = dyingWithUs(["unshare", "--net", "sh", "-c", script]);
    const holder = spawn(file, args);
    await once(holder.stdout, "data");
    return new Namespace(holder);
  }

  get pid(): number {
    return this.#holder.pid ?? 0;
  }

  get enter(): readonly string[] {
    return ["nsenter", `--net=/proc/${String(this.pid)}/ns/net`];
  }

  end(): void {
    this.#holder.kill("SIGKILL");
  }
}

function must(command: string, where?: Namespace): Promise<string> {
  return run([...(where?.enter ?? []), ...command.split(" ")]);
}

function run(argv: readonly string[]): Promise<string> {
  const [program = "", ...args] = argv;
  return new Promise((resolve, reject) => {
    execFile(program, args, (error, stdout, stderr) => {
      if (error === null) resolve(stdout);
      else reject(new Error(`${argv.join(" ")}: ${stderr}`));
    });
  });
}
