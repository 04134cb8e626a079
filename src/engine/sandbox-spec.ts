import { BerthError } from "../core/errors.ts";
import type { Image } from "../core/image.ts";
import type { InboxContainer } from "../db/inbox.ts";
import type { SandboxTemplate } from "../isolation/sandbox-spec.ts";

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/**
 * What a container runs: the image's process with the container's wishes laid over it. An entrypoint given by the
 * container drops the image's command, as Docker's does.
 * @throws BerthError `command_not_found` when neither names a command.
 */
export function containerProcess(container: InboxContainer, image: Image): SandboxTemplate["process"] {
  const { spec } = container;
  const from = image.config.config ?? {};
  const entrypoint = spec.entrypoint ?? from.Entrypoint ?? [];
  const command = spec.command ?? (spec.entrypoint === undefined ? (from.Cmd ?? []) : []);
  const args = [...entrypoint, ...command];
  if (args.length === 0) {
    throw new BerthError("command_not_found", "Neither the image nor the container names a command to run.");
  }
  const env = new Map<string, string>([["PATH", defaultPath]]);
  for (const entry of from.Env ?? []) {
    const equals = entry.indexOf("=");
    if (equals > 0) env.set(entry.slice(0, equals), entry.slice(equals + 1));
  }
  for (const [name, value] of Object.entries(spec.env)) env.set(name, value);
  if (spec.tty && !env.has("TERM")) env.set("TERM", "xterm");
  return {
    args,
    env: [...env].map(([name, value]) => `${name}=${value}`),
    cwd: spec.workingDirectory ?? (from.WorkingDir === undefined || from.WorkingDir === "" ? "/" : from.WorkingDir),
    user: spec.user ?? from.User ?? "",
    tty: spec.tty,
    stdin: spec.openStdin,
  };
}

/** The sandbox of a container's run. `layers`: paths of the image's mounted layers, lowest first. */
export function containerTemplate(container: InboxContainer, image: Image, layers: readonly string[]): SandboxTemplate {
  const { spec } = container;
  return {
    projectId: container.projectId,
    layers,
    process: containerProcess(container, image),
    hostname: spec.hostname ?? null,
    limits: { cpus: container.cpus, memory: container.memory, pids: container.pids, disk: container.disk },
    readOnlyRootfs: spec.readOnlyRootfs,
    profile: "container",
    capabilities: spec.capabilities,
    network: "project",
    mounts: [],
  };
}
