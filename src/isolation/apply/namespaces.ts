import { closeSync, openSync, writeFileSync } from "node:fs";
import { type ChildCall, CLONE_NEWNET, CLONE_NEWUSER, constantText, numbers, startChild } from "./child.ts";
import { pidfdGetfd, pidfdOpen } from "./ffi.ts";

/** Ids of one container's user namespace: `idBase` to `idBase + 65,535` on the host are 0 to 65,535 inside. */
export const idsPerContainer = 65_536;

/** Descriptors of a sandbox's namespaces, all close-on-exec; while one is open (or a process inside) they exist. */
export interface Namespaces {
  user: number;
  /** Owned by the user namespace: otherwise a runtime would show the host's /sys and interfaces. */
  net: number;
  /** A NETLINK_ROUTE socket that was made inside the network namespace, to configure it from outside. */
  netlink: number;
}

const AT_FDCWD = -100;
const O_WRONLY_CLOEXEC = 0o2000001;
const AF_NETLINK = 16;
const SOCK_RAW_CLOEXEC = 0o2000003;

/**
 * Settings that belong to the namespaces, and so can only be written from inside. As Docker's: any user may ping without
 * a capability, and bind ports below 1024. "0 65535" because a range with an id that is not mapped is EINVAL. What all
 * user namespaces share with the host's root is bounded for each, so that one can't take it from all (user_namespaces(7)).
 */
const settings = [
  ["/proc/sys/user/max_inotify_instances", "256"],
  ["/proc/sys/user/max_inotify_watches", "65536"],
  ["/proc/sys/net/ipv4/ping_group_range", "0 65535"],
  ["/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"],
] as const;

// The child's first descriptor is number 3; each file is closed again, so the socket gets number 3 as well.
const calls: ChildCall[] = [
  ...settings.flatMap(([path, value]): ChildCall[] => [
    [numbers.openat, AT_FDCWD, constantText(path), O_WRONLY_CLOEXEC, 0],
    [numbers.write, 3, constantText(value), value.length],
    [numbers.close, 3],
  ]),
  [numbers.socket, AF_NETLINK, SOCK_RAW_CLOEXEC, 0],
];

/**
 * Makes a user namespace with 65,536 ids and a network namespace that it owns. One clone makes both; the child that is
 * cloned into them is gone again before this returns. setgroups(2) stays allowed, as images rely on it.
 * Takes 0.8 ms, synchronously.
 */
export function createNamespaces(idBase: number): Namespaces {
  const child = startChild(CLONE_NEWUSER | CLONE_NEWNET, calls);
  const opened: number[] = [];
  const keep = (fd: number): number => {
    opened.push(fd);
    return fd;
  };
  try {
    const map = `0 ${idBase} ${idsPerContainer}`;
    writeFileSync(`/proc/${child.pid}/uid_map`, map);
    writeFileSync(`/proc/${child.pid}/gid_map`, map);
    const user = keep(openSync(`/proc/${child.pid}/ns/user`, "r"));
    const net = keep(openSync(`/proc/${child.pid}/ns/net`, "r"));
    child.proceed();
    const pidfd = pidfdOpen(child.pid);
    try {
      return { user, net, netlink: keep(pidfdGetfd(pidfd, 3)) };
    } finally {
      closeSync(pidfd);
    }
  } catch (error) {
    for (const fd of opened) closeSync(fd);
    throw error;
  } finally {
    child.end();
  }
}

/** Lets go of the namespaces; without a process inside they are gone then, and so is the veth pair. */
export function closeNamespaces(namespaces: Namespaces): void {
  for (const fd of [namespaces.user, namespaces.net, namespaces.netlink]) closeSync(fd);
}
