/**
 * What stands between a container and its host, each by its name. A test leaves protections out of a sandbox to show
 * what they prevent (test/host/controls.test.ts walks this list). Nothing else can: they are an argument of
 * `Sandboxes.start` that the engine never gives, and no request, row or setting has a field for them.
 */
export const protections = [
  "user",
  "mount",
  "network",
  "pid",
  "ipc",
  "uts",
  "cgroup",
  "capabilities",
  "noNewPrivileges",
  "seccomp",
  "maskedPaths",
  "readonlyPaths",
  "readonlyMounts",
  "memory",
  "cpu",
  "pids",
  "devices",
  "rlimits",
] as const;
export type Protection = (typeof protections)[number];
