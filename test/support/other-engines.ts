import { execFile } from "node:child_process";
import { existsSync, readdirSync, rmdirSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { startDockerd } from "./dockerd.ts";
import { Owned } from "./ownership.ts";

// Debian's docker.io, podman and skopeo: unpacked by .ci/run into .cache/engines, or installed.

const unpacked = new URL("../../.cache/engines/usr/", import.meta.url).pathname;
const programs = [`${unpacked}bin`, `${unpacked}sbin`, "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
const libraries = existsSync(`${unpacked}lib`)
  ? readdirSync(`${unpacked}lib`).flatMap((name) => (name.endsWith("-linux-gnu") ? [`${unpacked}lib/${name}`] : []))
  : [];

/** The programs that are not there. */
export function missingEngines(): string[] {
  return ["dockerd", "docker", "containerd", "podman", "skopeo", "runc"].filter(
    (name) => !programs.some((directory) => existsSync(join(directory, name))),
  );
}

/** Docker Engine with BuildKit, podman and skopeo, with files of their own, without a network but the host's loopback. */
export interface OtherEngines {
  /** Run a command of theirs and answer what it wrote to stdout. Docker's builds are BuildKit's. */
  docker(...args: string[]): Promise<string>;
  podman(...args: string[]): Promise<string>;
  skopeo(...args: string[]): Promise<string>;
  /** Options of `podman run`. */
  podmanRun: readonly string[];
  /** Options of `skopeo copy` to `docker-daemon:` that lead to this Docker Engine. */
  toDocker: readonly string[];
  /** A directory for the test's files. */
  dir: string;
  stop(): Promise<void>;
}

export async function startOtherEngines(): Promise<OtherEngines> {
  const owned = Owned.directory("berth-engines-");
  const dir = owned.footprint.directory;
  const cgroup = `berth-engines-${String(process.pid)}`;
  const env: NodeJS.ProcessEnv = {
    HOME: dir,
    PATH: programs.join(":"),
    LD_LIBRARY_PATH: libraries.join(":"),
    DOCKER_BUILDKIT: "1",
    DOCKER_HOST: `unix://${dir}/docker.sock`,
    CONTAINERS_CONF: await write("containers.conf", podmanSettings(dir)),
    CONTAINERS_REGISTRIES_CONF: await write("registries.conf", ""),
    CONTAINERS_STORAGE_CONF: await write(
      "storage.conf",
      `[storage]\ndriver = "overlay"\ngraphroot = "${dir}/podman"\nrunroot = "${dir}/podman-run"\n`,
    ),
  };
  const policy = await write("policy.json", '{"default": [{"type": "insecureAcceptAnything"}]}');
  const run = async (program: string, args: readonly string[]) =>
    (await promisify(execFile)(program, args, { env, maxBuffer: 64 * 2 ** 20 })).stdout;
  const unconnected = ["--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"];
  const daemon = await startDockerd(dir, ["dockerd", ...unconnected, `--cgroup-parent=/${cgroup}`], env);
  return {
    docker: (...args) => run("docker", args),
    podman: (command = "", ...args) =>
      run("podman", [command, ...(command === "pull" ? ["--signature-policy", policy] : []), ...args]),
    skopeo: (command = "", ...args) => run("skopeo", ["--policy", policy, command, ...args]),
    podmanRun: ["--rm", "--network=none", `--cgroup-parent=/${cgroup}`],
    toDocker: ["--dest-daemon-host", `unix://${daemon.socket}`],
    dir,
    async stop() {
      await daemon.stop();
      await run("umount", [`${dir}/podman/overlay`]).catch(() => "");
      await owned.remove();
      for (const parent of ["/sys/fs/cgroup", ...directories("/sys/fs/cgroup")]) removeGroup(join(parent, cgroup));
    },
  };

  async function write(name: string, text: string): Promise<string> {
    await writeFile(join(dir, name), text);
    return join(dir, name);
  }
}

function directories(path: string): string[] {
  if (!existsSync(path)) return [];
  return readdirSync(path, { withFileTypes: true }).flatMap((each) =>
    each.isDirectory() ? [join(path, each.name)] : [],
  );
}

/** Without limits of its own podman asks for more open files than a host may grant. */
const podmanSettings = (dir: string) => `
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "none"
tmp_dir = "${dir}/podman-tmp"
lock_type = "file"
`;

/** A cgroup goes when those in it are gone; its files are the kernel's. */
function removeGroup(path: string): void {
  if (!existsSync(path)) return;
  for (const child of directories(path)) removeGroup(child);
  rmdirSync(path);
}
