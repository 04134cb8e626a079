import {
  chownSync,
  closeSync,
  fstatSync,
  mkdirSync,
  openSync,
  readSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { BerthError } from "../core/errors.ts";
import { hasCode, O_DIRECTORY, O_PATH, openat2, RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS } from "./apply/ffi.ts";
import { closeNamespaces } from "./apply/namespaces.ts";
import { identify } from "./apply/process.ts";
import { startCreated } from "./apply/runtime.ts";
import { writeNote } from "./notes.ts";
import type { Parts } from "./parts.ts";
import { hostFiles } from "./plan/files.ts";
import { cgroupPath } from "./plan/layout.ts";
import { type Protection, runtimeSpec } from "./plan/spec.ts";
import { resolveUser, type User } from "./plan/user.ts";
import type { Prepared } from "./prepare.ts";
import type { SandboxSpec } from "./sandbox-spec.ts";

/**
 * Turns a prepared slot into a running container, in an order that a reader of the slot's files can tell how far it got.
 * Whatever happens, the prepared descriptors are closed: a container that runs holds its namespaces itself.
 * @throws BerthError; the caller releases the slot.
 */
export async function startPrepared(
  parts: Parts,
  spec: SandboxSpec,
  prepared: Prepared,
  { recorded, without = new Set() }: { recorded?: Promise<unknown>; without?: ReadonlySet<Protection> },
): Promise<{ pid: number; startedAt: Date }> {
  const { reach, layout, runtime } = parts;
  const paths = parts.slot(spec.slot);
  const { namespaces, monitor } = prepared;
  let created = false;
  try {
    writeNote(paths.owner, { id: spec.id, projectId: spec.projectId, network: spec.network });
    reach("start.owner");
    replaceLink(`../slots/${String(spec.slot)}`, `${layout.links}/${spec.id}`);
    reach("start.link");
    replaceLink(paths.log, spec.log);
    reach("start.log");
    if (spec.network === "project") parts.firewall.admit(spec.slot, { project: spec.projectId, egress: true });
    reach("start.admit");
    await parts.mounts.mountRootfs({
      layers: [layout.mountTargets, ...spec.layers],
      upper: paths.disk.upper,
      work: paths.disk.work,
      target: paths.rootfs,
      userNamespace: namespaces.user,
      volatile: true,
    });
    reach("start.rootfs");
    writeHostFiles(parts, spec);
    reach("start.files");
    const config = runtimeSpec(
      {
        process: { ...processOf(spec), user: userOf(paths.rootfs, spec.process.user) },
        hostname: spec.hostname,
        rootfs: paths.rootfs,
        readOnlyRootfs: spec.readOnlyRootfs,
        hostFiles: paths.disk.hostFiles,
        limits: spec.limits,
        capabilities: spec.capabilities,
        profile: spec.profile,
        // The runtime opens them through this process, which holds them until the container does.
        namespaces: {
          user: `/proc/${String(process.pid)}/fd/${String(namespaces.user)}`,
          network: `/proc/${String(process.pid)}/fd/${String(namespaces.net)}`,
          idBase: parts.idBase(spec.slot),
        },
        cgroup: cgroupPath(layout, spec.projectId, spec.id),
        seccomp: parts.seccomp,
        runtime: runtime.name,
        hostOpenFiles: parts.hostOpenFiles,
      },
      without,
    );
    writeFileSync(paths.config, JSON.stringify(config), { mode: 0o600 });
    reach("start.config");
    created = true;
    const pid = await monitor.create();
    reach("start.create");
    const first = identify(pid);
    if (first === null) throw new BerthError("start_failed", "The container's first process ended before its start.");
    await recorded;
    const startedAt = new Date();
    writeNote(paths.run, { process: first, startedAt: startedAt.toISOString() });
    reach("start.record");
    await startCreated(runtime, layout.runtimeRoot, paths.name);
    reach("start.go");
    return { pid, startedAt };
  } catch (error) {
    throw hasCode(error, "ENOSPC", "EDQUOT")
      ? new BerthError("disk_full", "The container's disk is full.", { cause: error })
      : error;
  } finally {
    if (!created) monitor.discard();
    closeNamespaces(namespaces);
  }
}

/** The process as the runtime takes it. */
export function processOf(spec: Pick<SandboxSpec, "process">): {
  args: string[];
  env: string[];
  cwd: string;
  tty: boolean;
} {
  const { args, env, cwd, tty } = spec.process;
  return { args, env, cwd: cwd === "" ? "/" : cwd, tty };
}

function replaceLink(target: string, path: string): void {
  rmSync(path, { force: true });
  symlinkSync(target, path);
}

/** The files that the host gives the container, on the container's own disk: what it adds to them counts there. */
function writeHostFiles(parts: Parts, spec: SandboxSpec): void {
  const { hostFiles: directory } = parts.slot(spec.slot).disk;
  const owner = parts.idBase(spec.slot);
  const address = spec.network === "project" ? parts.network.of(spec.slot).ipv4 : null;
  mkdirSync(directory, { recursive: true, mode: 0o711 });
  for (const [name, text] of Object.entries(hostFiles(spec.hostname, address, parts.resolvConf))) {
    writeFileSync(`${directory}/${name}`, text, { mode: 0o644 });
    chownSync(`${directory}/${name}`, owner, owner);
  }
}

/** Who the process runs as, by the account files of the image itself. */
export function userOf(rootfs: string, text: string): User {
  const root = openSync(rootfs, O_PATH | O_DIRECTORY);
  try {
    return resolveUser(text, readWithin(root, "etc/passwd"), readWithin(root, "etc/group"));
  } finally {
    closeSync(root);
  }
}

const accountFileLimit = 1 << 20;
const O_RDONLY_NONBLOCK = 0o4000;

/** A regular file of a tenant's root, resolved inside it; "" for anything else. */
function readWithin(root: number, path: string): string {
  let fd: number;
  try {
    fd = openat2(root, path, { flags: O_RDONLY_NONBLOCK, resolve: RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS });
  } catch (error) {
    if (hasCode(error, "ENOENT", "ENOTDIR", "ELOOP", "EACCES", "ENXIO", "ENODEV")) return "";
    throw error;
  }
  try {
    if (!fstatSync(fd).isFile()) return "";
    const buffer = Buffer.alloc(Math.min(fstatSync(fd).size, accountFileLimit));
    return buffer.toString("utf8", 0, readSync(fd, buffer, 0, buffer.length, 0));
  } finally {
    closeSync(fd);
  }
}
