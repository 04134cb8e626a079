import { chownSync, mkdirSync, writeFileSync } from "node:fs";
import { defaultHostname } from "../core/container.ts";
import { BerthError } from "../core/errors.ts";
import { userOf } from "./account.ts";
import { hasCode } from "./apply/ffi.ts";
import { closeNamespaces } from "./apply/namespaces.ts";
import { identify, isAlive, type ProcessId } from "./apply/process.ts";
import { makeMounts } from "./extra-mounts.ts";
import { readProcess, writeNote } from "./notes.ts";
import type { Parts } from "./parts.ts";
import { hostFiles } from "./plan/files.ts";
import { cgroupPath } from "./plan/layout.ts";
import type { Protection } from "./plan/protection.ts";
import { runtimeSpec } from "./plan/spec.ts";
import type { Prepared } from "./prepare.ts";
import { type SandboxTemplate, templateKey } from "./sandbox-spec.ts";

/** A sandbox that is complete, and nobody's yet: its first process waits to be let go. */
export interface Created {
  slot: number;
  /** Of the template that it was made from; see templateKey. */
  key: string;
  process: ProcessId;
  /** Resolves when its monitor is gone. */
  ended: Promise<unknown>;
}

/** Whether its process and its monitor still wait; anybody with root may have ended them. */
export function isWaiting(parts: Parts, created: Created): boolean {
  const monitor = readProcess(parts.slot(created.slot).monitor);
  return isAlive(created.process) && monitor !== null && isAlive(monitor);
}

/**
 * Turns a prepared slot into a sandbox, all but whom it is for: what a container's id, log and firewall elements add is
 * start.ts's. Whatever happens, the prepared descriptors are closed: the process that waits holds its namespaces itself.
 * @throws BerthError; the caller releases the slot.
 */
export async function createSandbox(
  parts: Parts,
  template: SandboxTemplate,
  prepared: Prepared,
  without: ReadonlySet<Protection>,
): Promise<Created> {
  const { reach, layout, runtime } = parts;
  const { slot, namespaces, monitor } = prepared;
  const paths = parts.slot(slot);
  const address = template.network === "project" ? parts.network.of(slot).ipv4 : null;
  const hostname = template.hostname ?? defaultHostname(address);
  let created = false;
  try {
    writeNote(paths.owner, { id: null, projectId: template.projectId, network: template.network });
    reach("create.owner");
    await parts.mounts.mountRootfs({
      layers: [layout.mountTargets, ...template.layers],
      upper: paths.disk.upper,
      work: paths.disk.work,
      target: paths.rootfs,
      userNamespace: namespaces.user,
      volatile: true,
    });
    reach("create.rootfs");
    writeHostFiles(parts, slot, hostname, address);
    reach("create.files");
    const mounts = await makeMounts(parts, slot, template.mounts, namespaces.user);
    const config = runtimeSpec(
      {
        process: { ...processOf(template), user: userOf(paths.rootfs, template.process.user) },
        hostname,
        rootfs: paths.rootfs,
        readOnlyRootfs: template.readOnlyRootfs,
        hostFiles: paths.disk.hostFiles,
        mounts,
        limits: template.limits,
        capabilities: template.capabilities,
        profile: template.profile,
        // The runtime opens them through this process, which holds them until the container does.
        namespaces: {
          user: `/proc/${String(process.pid)}/fd/${String(namespaces.user)}`,
          network: `/proc/${String(process.pid)}/fd/${String(namespaces.net)}`,
          idBase: parts.idBase(slot),
        },
        cgroup: cgroupPath(layout, template.projectId, slot),
        seccomp: parts.seccomp,
        runtime: runtime.name,
        hostOpenFiles: parts.hostOpenFiles,
      },
      without,
    );
    writeFileSync(paths.config, JSON.stringify(config), { mode: 0o600 });
    reach("create.config");
    created = true;
    const first = identify(await monitor.create(config.process));
    reach("create.process");
    if (first === null) throw new BerthError("start_failed", "The container's first process ended before its start.");
    return { slot, key: templateKey(template), process: first, ended: monitor.ended };
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
export function processOf(template: Pick<SandboxTemplate, "process">): {
  args: string[];
  env: string[];
  cwd: string;
  tty: boolean;
} {
  const { args, env, cwd, tty } = template.process;
  return { args, env, cwd: cwd === "" ? "/" : cwd, tty };
}

/** The files that the host gives the container, on the container's own disk: what it adds to them counts there. */
function writeHostFiles(parts: Parts, slot: number, hostname: string, address: string | null): void {
  const { hostFiles: directory } = parts.slot(slot).disk;
  const owner = parts.idBase(slot);
  mkdirSync(directory, { recursive: true, mode: 0o711 });
  for (const [name, text] of Object.entries(hostFiles(hostname, address, parts.resolvConf))) {
    writeFileSync(`${directory}/${name}`, text, { mode: 0o644 });
    chownSync(`${directory}/${name}`, owner, owner);
  }
}
