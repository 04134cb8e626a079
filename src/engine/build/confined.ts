/** What a program of the host's that works on a tenant's data may have. */
export interface Confinement {
  /** Host id that it runs as and that owns nothing else. */
  uid: number;
  /** Bytes of one file and of address space; processes. */
  limits: { fileBytes: number; addressBytes: number; processes: number };
  /** Whether it reaches the network. */
  network: boolean;
}

/**
 * What stands before the program's own argv, each program executing the next: a process namespace of its own, so that
 * nothing of it is left when it ends or is killed, limits, and an id without capabilities.
 */
export function confined({ uid, limits, network }: Confinement): { file: string; args: string[] } {
  return {
    file: "/usr/bin/unshare",
    args: [
      ...(network ? [] : ["--net"]),
      // The worker's own directory may be one that the id can't read.
      ...["--pid", "--fork", "--kill-child", "--wd=/", "--"],
      "/usr/bin/prlimit",
      ...[`--fsize=${limits.fileBytes}`, `--as=${limits.addressBytes}`, `--nproc=${limits.processes}`],
      ...["--core=0", "--"],
      "/usr/bin/setpriv",
      ...[`--reuid=${uid}`, `--regid=${uid}`, "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"],
      // The change of ids clears the signal that unshare asked for.
      ...["--no-new-privs", "--pdeathsig=KILL", "--"],
    ],
  };
}
