/**
 * Places between every two effects of a start, release and removal, at which a test can have the worker killed to see
 * that the next one finds its way. `slot.*` is what makes a slot ready and `create.*` what makes a sandbox on it, in the pool or as the
 * beginning of a start; `converge.*` lies between the effects on the host and the writes to the database (engine/container-*.ts), and `job.*` and
 * `build.*` between what an attempt at a job does and what it writes.
 */
export const failpoints = [
  "slot.directory",
  "slot.namespaces",
  "slot.network",
  "slot.disk",
  "slot.mount",
  "slot.monitor",
  "create.owner",
  "create.rootfs",
  "create.files",
  "create.config",
  "create.process",
  "start.owner",
  "start.link",
  "start.log",
  "start.admit",
  "start.record",
  "start.go",
  "release.monitor",
  "release.processes",
  "release.ports",
  "release.expel",
  "release.network",
  "release.rootfs",
  "release.disk",
  "release.cgroup",
  "release.runtime",
  "release.exit",
  "release.directory",
  "release.link",
  "remove.disk",
  "remove.log",
  "converge.begun",
  "converge.started",
  "converge.published",
  "converge.running",
  "converge.stopping",
  "converge.asked",
  "converge.released",
  "converge.ended",
  "converge.removed",
  "converge.forgotten",
  "converge.erased",
  "job.claimed",
  "build.begun",
  "build.stepped",
  "build.kept",
  "build.recorded",
  "job.ended",
  "job.settled",
] as const;
export type Failpoint = (typeof failpoints)[number];

/** Called after each effect; ends the process, as SIGKILL would at that moment, when it is the armed one. */
export type ReachFailpoint = (name: Failpoint) => void;

/** @param armed a name of `failpoints`; anything else arms none */
export function armFailpoint(armed: string | null): ReachFailpoint {
  if (armed === null) return () => undefined;
  return (name) => {
    if (name === armed) process.kill(process.pid, "SIGKILL");
  };
}
