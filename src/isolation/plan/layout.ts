/**
 * Where an instance keeps what it needs to run containers. Everything of one run is under its *slot*, an integer that
 * is a container's identity on its host from its first start to its removal (uid range, address, veth, disk): so a
 * sandbox can be made ready before it is known for whom. `containers/<id>` is a link to the slot, made first and removed
 * last; a slot without a link is one that waits in the pool, or a leftover of it.
 */
export interface Layout {
  instance: string;
  /** On a tmpfs that the host sees too, mode 0711: processes inside user namespaces pass through it. */
  runDir: string;
  /** File that the worker's mount namespace is pinned to. */
  mountNamespace: string;
  links: string;
  slots: string;
  /** Where monitors leave exit codes, one file per run, named as the runtime's container. */
  exits: string;
  /** State directory of the OCI runtime. */
  runtimeRoot: string;
  dataDir: string;
  disks: string;
  logs: string;
  /** A read-only lowest layer with the directories and files that the runtime mounts over. */
  mountTargets: string;
  /** cgroup of all containers of the instance, as a path from the hierarchy's root. */
  cgroup: string;
}

export function layout(config: { instance: string; runDir: string; dataDir: string }): Layout {
  const { instance, runDir, dataDir } = config;
  return {
    instance,
    runDir,
    mountNamespace: `${runDir}/mntns`,
    links: `${runDir}/containers`,
    slots: `${runDir}/slots`,
    exits: `${runDir}/exits`,
    runtimeRoot: `${runDir}/runtime`,
    dataDir,
    disks: `${dataDir}/worker/disks`,
    logs: `${dataDir}/worker/logs`,
    mountTargets: `${dataDir}/worker/mount-targets`,
    cgroup: `/berth-${instance}`,
  };
}

/** The files of one slot. */
export interface SlotLayout {
  slot: number;
  /** The runtime's name of the container, and the name of its exit file. */
  name: string;
  /** Also the OCI bundle. */
  dir: string;
  rootfs: string;
  disk: { image: string; mount: string; upper: string; work: string; hostFiles: string };
  config: string;
  /** Written by the runtime: the first process's pid. */
  pidFile: string;
  /** Written before the first process is let go; see run-record.ts. */
  record: string;
  /** A link to the directory of the log: the monitor's log path goes through it, so that it can be moved. */
  logLink: string;
  exit: string;
  runtimeState: string;
}

export function slotLayout(all: Layout, slot: number): SlotLayout {
  const name = `${all.instance}-${String(slot)}`;
  const dir = `${all.slots}/${String(slot)}`;
  const mount = `${dir}/disk`;
  return {
    slot,
    name,
    dir,
    rootfs: `${dir}/rootfs`,
    disk: {
      image: `${all.disks}/${String(slot)}.img`,
      mount,
      upper: `${mount}/upper`,
      work: `${mount}/work`,
      hostFiles: `${mount}/etc`,
    },
    config: `${dir}/config.json`,
    pidFile: `${dir}/pid`,
    record: `${dir}/run.json`,
    logLink: `${dir}/log`,
    exit: `${all.exits}/${name}`,
    runtimeState: `${all.runtimeRoot}/${name}`,
  };
}

/** A container's cgroup: below its project's, so that what a project uses can be read and bounded as one. */
export function cgroupPath(all: Layout, projectId: string, id: string): string {
  return `${all.cgroup}/${projectId}/${id}`;
}

/** Ids of each instance, addresses of each instance: one block of slots; see block.ts. */
export const slotsPerBlock = 2048;
export const blocks = 31;
const firstId = 1_048_576;

/** First of the 65,536 host ids of a slot. */
export function idBase(block: number, slot: number): number {
  return firstId + (block * slotsPerBlock + slot) * 65_536;
}
