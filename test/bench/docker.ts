import { execFile } from "node:child_process";
import { mkdir, mkdtemp, symlink } from "node:fs/promises";
import { promisify } from "node:util";
import { startDockerd } from "../support/dockerd.ts";
import { claimNumber, Owned } from "../support/ownership.ts";
import { pidsNaming } from "./berth.ts";
import type { Engine } from "./engine.ts";
import { Client } from "./http.ts";
import type { Peer } from "./peer.ts";

const run = promisify(execFile);
const limits = { Memory: 128 << 20, MemorySwap: 128 << 20, NanoCpus: 1e9, PidsLimit: 128 };

/** Docker Engine and BuildKit. */
export interface Docker extends Engine {
  /** What it works with, each with its version. */
  parts: string;
  /** The address of this machine that the daemon reaches. */
  hostAddress: string;
  /**
   * `docker build` with BuildKit, as a whole process, by buildx where the peer has that; no option but these, so that it
   * attests what it does by default (this store of images: nothing). `noCache`: every step anew.
   */
  cliBuild(tag: string, contextDir: string, options?: { noCache: boolean }): Promise<void>;
  /** Builds, and runs the image in the place of the container of this name; answers with its port's URL. */
  cliReplace(name: string, contextDir: string, port: number): Promise<string>;
}

/**
 * Starts a dockerd with its own data root, socket and network namespace (its firewall rules stay in there), as Debian
 * configures it otherwise. It has no size limit for writable layers.
 */
export async function startDocker(peer: Peer): Promise<Docker> {
  const dir = await mkdtemp("/var/lib/berth-bench-docker-");
  const netns = `bench${String(process.pid)}`;
  const owned = Owned.record({ directory: dir, networkNamespace: netns });
  await run("ip", ["netns", "add", netns]);
  await run("ip", ["-n", netns, "link", "set", "lo", "up"]);
  const subnet = `10.213.${claimNumber("bench-subnet", 256)}`;
  const veth = `bench${String(process.pid)}`;
  await run("ip", ["link", "add", veth, "type", "veth", "peer", "name", "eth0", "netns", netns]);
  await run("ip", ["address", "add", `${subnet}.1/30`, "dev", veth]);
  await run("ip", ["link", "set", veth, "up"]);
  await run("ip", ["-n", netns, "address", "add", `${subnet}.2/30`, "dev", "eth0"]);
  await run("ip", ["-n", netns, "link", "set", "eth0", "up"]);
  const enter = ["nsenter", `--net=/run/netns/${netns}`, ...peer.dockerd];
  const env = await environment(peer, dir);
  const daemon = await startDockerd(dir, [...enter, "--insecure-registry", `${subnet}.0/30`], env).catch(
    async (error: unknown) => {
      await owned.remove();
      throw error;
    },
  );
  const { socket } = daemon;
  const api = new Client({ socketPath: socket });
  const version = await api.json<Version>("GET", "/version");
  const docker = async (...args: string[]) => (await run(peer.docker, args, { env })).stdout.trim();
  const cliBuild: Docker["cliBuild"] = async (tag, contextDir, options) => {
    const anew = options?.noCache === true ? ["--no-cache"] : [];
    await docker("build", "-q", ...anew, "-t", tag, contextDir);
  };
  return {
    name: `Docker ${version.Version}`,
    parts: [...components(version), await docker("buildx", "version").catch(() => "no buildx")].join(", "),
    hostAddress: `${subnet}.1`,
    async build(tag, context) {
      const answer = await api.send("POST", `/build?t=${encodeURIComponent(tag)}`, context);
      if (answer.status !== 200) throw new Error(answer.body.toString());
    },
    cliBuild,
    async cliReplace(name, contextDir, port) {
      await cliBuild(name, contextDir);
      await docker("rm", "--force", name);
      await docker("run", "--detach", "--name", name, "--publish", `${port}:${port}`, name);
      return `http://${subnet}.2:${String(port)}/`;
    },
    async start(image, command) {
      const body = { Image: image, Cmd: command, HostConfig: limits };
      const { Id } = await api.json<{ Id: string }>("POST", "/containers/create", body);
      await api.json("POST", `/containers/${Id}/start`);
      return Id;
    },
    async firstLine(id) {
      // Behind the 8 bytes that begin a frame.
      const line = await api.firstLine(`/containers/${id}/logs?stdout=1&follow=1`, 8);
      if (line === null) throw new Error(`${id} printed nothing`);
      return line;
    },
    async remove(id) {
      await api.json("DELETE", `/containers/${id}?force=1`);
    },
    keepers: pidsNaming,
    async pull(reference) {
      const answer = await api.send("POST", `/images/create?fromImage=${encodeURIComponent(reference)}`);
      succeeded(answer.status, answer.body);
    },
    async push(tag, destination) {
      const [repository = "", name = ""] = destination.split(/:(?=[^/:]+$)/);
      await api.json("POST", `/images/${tag}/tag?repo=${encodeURIComponent(repository)}&tag=${name}`);
      const auth = { "x-registry-auth": Buffer.from("{}").toString("base64") };
      const answer = await api.send("POST", `/images/${repository}/push?tag=${name}`, undefined, auth);
      succeeded(answer.status, answer.body);
    },
    async close() {
      api.close();
      await daemon.stop();
      await owned.remove();
    },
  };
}

interface Version {
  Version: string;
  Components: { Name: string; Version: string }[];
}

const components = ({ Components }: Version) =>
  Components.flatMap(({ Name, Version }) => (["containerd", "runc"].includes(Name) ? [`${Name} ${Version}`] : []));

/** What daemon and command line run with; settings are in a directory of their own. */
async function environment(peer: Peer, dir: string): Promise<NodeJS.ProcessEnv> {
  const settings = `${dir}/settings`;
  await mkdir(settings);
  if (peer.plugins !== null) await symlink(peer.plugins, `${settings}/cli-plugins`);
  return {
    ...process.env,
    PATH: [...peer.programs, process.env["PATH"]].join(":"),
    DOCKER_BUILDKIT: "1",
    DOCKER_CONFIG: settings,
    DOCKER_HOST: `unix://${dir}/docker.sock`,
  };
}

/** Docker answers 200 at once, and tells of failure in a later line of JSON. */
function succeeded(status: number, body: Buffer): void {
  const text = body.toString();
  if (status !== 200 || text.includes('"errorDetail"')) throw new Error(text.slice(-500));
}
