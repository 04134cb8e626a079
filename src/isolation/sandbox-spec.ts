import type { Resources } from "../core/container.ts";

/**
 * Something that a process sees besides its image, at `target`: an absolute path, which the runtime follows inside the
 * root. What is there in the image is hidden, not changed. Ids are the process's own.
 */
export type SandboxMount = { target: string } & (
  | { kind: "tmpfs" /** Bytes; null: as many as the memory limit. */; size: number | null }
  /** A file in memory that can't be written. */
  | { kind: "file"; content: string; mode: number; uid: number; gid: number }
  /** A file or directory (`source`, without symlinks) of layers, lowest first; what is written there is forgotten. */
  | { kind: "tree"; layers: readonly string[]; source: string; writable: boolean }
  /** A directory of the worker's, whose files keep the owners that the process gives them. */
  | { kind: "directory"; path: string; writable: boolean }
);

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
  /** One below another comes after it. */
  mounts: readonly SandboxMount[];
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
  const { projectId, layers, hostname, readOnlyRootfs, profile, capabilities, network, mounts } = template;
  const { args, env, cwd, user, tty, stdin } = template.process;
  const { cpus, memory, pids, disk } = template.limits;
  return JSON.stringify([
    [projectId, layers, args, env, cwd, user, tty, stdin, hostname],
    [cpus, memory, pids, disk],
    [readOnlyRootfs, profile, capabilities.add, capabilities.drop, network],
    mounts,
  ]);
}
