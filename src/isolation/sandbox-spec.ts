import type { Resources } from "../core/container.ts";

/** Everything that one process in a sandbox is started with. */
export interface SandboxSpec {
  /** Of a container or build step; letters, digits, `_` and `-`. */
  id: string;
  /** From takeSlot, or the one that the container has had since its first start. */
  slot: number;
  projectId: string;
  /** EROFS files, lowest first. */
  layers: readonly string[];
  process: {
    args: string[];
    /** `NAME=value` */
    env: string[];
    cwd: string;
    /** "", `name`, `uid`, `name:group` or `uid:gid`, by the account files of the image. */
    user: string;
    tty: boolean;
    stdin: boolean;
  };
  hostname: string;
  limits: Resources;
  readOnlyRootfs: boolean;
  profile: "container" | "build";
  capabilities: { add: readonly string[]; drop: readonly string[] };
  /** `none`: only a loopback of its own. */
  network: "project" | "none";
  /** Where the log is to be found: becomes a link, in an existing directory. */
  log: string;
}
