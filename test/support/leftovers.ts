import { execFileSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import type { Config } from "../../src/config.ts";

/**
 * Everything that an instance has in the kernel and in its run directory, one line each, but for its worker. Found by
 * looking at the system as a stranger would, not by asking the code under test.
 */
export function leftovers(host: { config: Pick<Config, "instance" | "runDir" | "dataDir"> }): string[] {
  const { instance, runDir, dataDir } = host.config;
  return [
    ...processes(runDir),
    ...mounts(runDir),
    ...cgroups(instance),
    ...readdirSync("/sys/class/net").flatMap((name) => (name.startsWith(`bt${instance}`) ? [`link ${name}`] : [])),
    ...elements(instance),
    ...loops(dataDir),
    ...["containers", "slots", "exits", "views"].flatMap((name) => entries(`${runDir}/${name}`)),
    ...entries(`${runDir}/runtime`).filter((path) => !path.includes("/.")),
    ...entries(`${dataDir}/worker/disks`),
    ...entries(`${dataDir}/worker/slot-logs`),
  ];
}

function entries(path: string): string[] {
  return existsSync(path) ? readdirSync(path).map((name) => `file ${path}/${name}`) : [];
}

/** Monitors and runtimes, which all have the run directory among their arguments, and the processes in containers. */
function processes(runDir: string): string[] {
  return readdirSync("/proc").flatMap((pid) => {
    if (!/^\d+$/.test(pid)) return [];
    const read = (file: string): string => {
      try {
        return readFileSync(`/proc/${pid}/${file}`, "utf8");
      } catch {
        return "";
      }
    };
    const command = read("cmdline").replaceAll("\0", " ");
    if (command === "") return [];
    const ours = command.includes(`=${runDir}/`) || read("cgroup").includes(`/berth-${runDir.slice(-6)}/`);
    return ours ? [`process ${pid} ${command}`] : [];
  });
}

/** Mounts of sandboxes in the instance's mount namespace; layers and views of the worker itself are no leftovers. */
function mounts(runDir: string): string[] {
  const listed = (enter: string[]) =>
    execFileSync("nsenter", [...enter, "cat", "/proc/self/mountinfo"], { encoding: "utf8" })
      .split("\n")
      .map((line) => line.split(" ")[4] ?? "");
  // Without a pinned namespace there must not even be the mount of the run directory.
  const pinned = listed([]).includes(`${runDir}/mntns`);
  const paths = pinned ? listed([`--mount=${runDir}/mntns`]) : listed([]);
  return paths.flatMap((path) =>
    path.startsWith(`${runDir}/slots/`) || path.startsWith(`${runDir}/views/`) || (!pinned && path.startsWith(runDir))
      ? [`mount ${path}`]
      : [],
  );
}

function cgroups(instance: string): string[] {
  const root = "/sys/fs/cgroup";
  const found = (parent: string): string[] =>
    (existsSync(parent) ? readdirSync(parent, { withFileTypes: true }) : []).flatMap((entry) =>
      entry.isDirectory() ? [`cgroup ${parent}/${entry.name}`] : [],
    );
  return [root, ...readdirSync(root).map((name) => `${root}/${name}`)].flatMap((hierarchy) =>
    found(`${hierarchy}/berth-${instance}`),
  );
}

/** Elements of the sets that tell of containers: neither resolvers nor closed ranges. */
function elements(instance: string): string[] {
  let text: string;
  try {
    text = execFileSync("nft", ["-j", "list", "table", "inet", `berth_${instance}`], {
      encoding: "utf8",
      stdio: "pipe",
    });
  } catch {
    return [];
  }
  const { nftables } = JSON.parse(text) as { nftables: Record<string, { name: string; elem?: unknown[] }>[] };
  return nftables.flatMap((object) => {
    const set = object["set"] ?? object["map"];
    return set === undefined || /^(resolver|closed)/.test(set.name)
      ? []
      : (set.elem ?? []).map((element) => `element of ${set.name}: ${JSON.stringify(element)}`);
  });
}

function loops(dataDir: string): string[] {
  return readdirSync("/sys/block").flatMap((name) => {
    try {
      const file = readFileSync(`/sys/block/${name}/loop/backing_file`, "utf8").trim();
      return file.startsWith(dataDir) ? [`loop ${name} ${file}`] : [];
    } catch {
      return [];
    }
  });
}
