import type { Resources } from "../core/container.ts";

/** What a process in a sandbox is started with, whoever it is for: equal templates make equal sandboxes. */
export interface SandboxTemplate {
  projectId: string;
  /** EROFS files, lowest first. */
  layers: readonly string[];
  process: {
    args: string[];
    /** `NAME=value`; HOME and HOSTNAME are added when they are missing. */
    env: string[];
    cwd: string;
    /** "", `name`, `uid`, `name:group` or `uid:gid`, by the account files of the image. */
    user: string;
    tty: boolean;
    stdin: boolean;
  };
  /** null: the one that goes with its address; see defaultHostname. */
  hostname: string | null;
  limits: Resources;
  readOnlyRootfs: boolean;
  profile: "container" | "build";
  capabilities: { add: readonly string[]; drop: readonly string[] };
  /** `none`: only a loopback of its own. */
  network: "project" | "none";
}

/** A template, and who it is for. */
export interface SandboxSpec extends SandboxTemplate {
  /** Of a container or build step; letters, digits, `_` and `-`. */
  id: string;
  /** From takeSlot, or the one that the container has had since its first start. */
  slot: number;
  /** Where the log is to be found: becomes a link, in an existing directory. */
  log: string;
}

/** The same for equal templates, and only for them. */
export function templateKey(template: SandboxTemplate): string {
  const { projectId, layers, process, hostname, limits, readOnlyRootfs, profile, capabilities, network } = template;
  const { args, env, cwd, user, tty, stdin } = process;
  const { cpus, memory, pids, disk } = limits;
  return JSON.stringify([
    [projectId, layers, args, env, cwd, user, tty, stdin, hostname],
    [cpus, memory, pids, disk],
    [readOnlyRootfs, profile, capabilities.add, capabilities.drop, network],
  ]);
}
