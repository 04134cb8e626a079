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
  /** The OCI runtime, mounted read-only. */
  programs: string;
  /** State directory of the OCI runtime. */
  runtimeRoot: string;
  /** Mounts of layers; see mounts.ts. */
  layers: string;
  /** Where builds look at layers; see views.ts. */
  views: string;
  dataDir: string;
  disks: string;
  /** Disks of caches, in a directory for each project, and where they are mounted; see caches.ts. */
  caches: string;
  cacheMounts: string;
  /** One directory a slot: a monitor's log has its path before its container is known; see SlotLayout.log. */
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
    programs: `${runDir}/bin`,
    runtimeRoot: `${runDir}/runtime`,
    layers: `${runDir}/layers`,
    views: `${runDir}/views`,
    dataDir,
    disks: `${dataDir}/worker/disks`,
    caches: `${dataDir}/worker/caches`,
    cacheMounts: `${runDir}/caches`,
    logs: `${dataDir}/worker/slot-logs`,
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
  disk: { image: string; mount: string; upper: string; work: string; hostFiles: string; mounts: string };
  /** Where what the container's mounts show is mounted for it, by number. */
  mounts: string;
  config: string;
  /** Written by the runtime: the first process's pid. */
  pidFile: string;
  /** Notes of the worker about the slot; see notes.ts. */
  owner: string;
  monitor: string;
  run: string;
  /** The monitor's log. The container's log path is a link to it, that is made when the container is known. */
  logDir: string;
  log: string;
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
      mounts: `${mount}/mounts`,
    },
    mounts: `${dir}/mounts`,
    config: `${dir}/config.json`,
    pidFile: `${dir}/pid`,
    owner: `${dir}/owner.json`,
    monitor: `${dir}/monitor.json`,
    run: `${dir}/run.json`,
    logDir: `${all.logs}/${String(slot)}`,
    log: `${all.logs}/${String(slot)}/log`,
    exit: `${all.exits}/${name}`,
    runtimeState: `${all.runtimeRoot}/${name}`,
  };
}

/** A slot's cgroup: below that of its project, so that what a project uses can be read and bounded as one. */
export function cgroupPath(all: Layout, projectId: string, slot: number): string {
  return `${all.cgroup}/${projectId}/${String(slot)}`;
}

/** Blocks of slots that the instances of a machine share; see block.ts. The last of each block's slots is not used. */
const slotsPerBlock = 2048;
export const usableSlots = slotsPerBlock - 1;
export const blocks = 31;
const firstId = 1_048_576;

/** First of the 65,536 host ids of a slot. */
export function idBase(block: number, slot: number): number {
  return firstId + (block * slotsPerBlock + slot) * 65_536;
}
