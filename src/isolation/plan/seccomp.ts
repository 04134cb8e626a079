/** What seccomp does with a call (seccomp(2)). */
export type SeccompAction = "SCMP_ACT_ALLOW" | "SCMP_ACT_ERRNO";

/** A condition on one argument: `value & mask == wanted` (MASKED_EQ) or `value == wanted` (EQ). */
export interface SeccompArgument {
  index: number;
  value: number;
  valueTwo?: number;
  op: "SCMP_CMP_EQ" | "SCMP_CMP_MASKED_EQ";
}

/** OCI runtime spec, config-linux.md, `seccomp`. All conditions of a rule must hold; rules of one call are "or". */
export interface SeccompProfile {
  defaultAction: SeccompAction;
  defaultErrnoRet: number;
  architectures: string[];
  syscalls: { names: string[]; action: SeccompAction; errnoRet?: number; args?: SeccompArgument[] }[];
}

const EPERM = 1;
const ENOSYS = 38;
const EAFNOSUPPORT = 97;

/**
 * Calls that a program may make with any arguments. Nothing here mounts, makes or enters a namespace, loads code into
 * the kernel, reads another container, or opens an interface whose bugs were the usual way out (io_uring, bpf,
 * userfaultfd, keyctl, perf, AF_VSOCK, AF_ALG).
 */
const allowed = words(`
  accept accept4 access adjtimex alarm arch_prctl bind brk capget capset chdir chmod chown clock_adjtime clock_getres
  clock_gettime clock_nanosleep close close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1
  epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit
  exit_group faccessat faccessat2 fadvise64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchownat
  fcntl fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstatfs fsync ftruncate futex futex_wait
  futex_waitv futex_wake futex_requeue futimesat get_robust_list get_thread_area getcpu getcwd getdents getdents64
  getegid geteuid getgid getgroups getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid
  getresuid getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid getxattr inotify_add_watch
  inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit ioctl
  ioprio_get ioprio_set kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lgetxattr link
  linkat listen listxattr llistxattr lremovexattr lseek lsetxattr lstat madvise membarrier memfd_create memfd_secret
  mincore mkdir mkdirat mlock mlock2 mlockall mmap mprotect mq_getsetattr mq_notify mq_open mq_timedreceive
  mq_timedsend mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at
  nanosleep newfstatat open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free
  pkey_mprotect poll ppoll prctl pread64 preadv preadv2 prlimit64 process_mrelease process_vm_readv process_vm_writev
  pselect6 ptrace pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv recvfrom recvmmsg recvmsg
  remap_file_pages removexattr rename renameat renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending
  rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sched_get_priority_max
  sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval
  sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop
  semtimedop sendfile sendmmsg sendmsg sendto set_robust_list set_thread_area set_tid_address setfsgid setfsuid setgid
  setgroups setitimer setpgid setpriority setregid setresgid setresuid setreuid setrlimit setsid setsockopt setuid
  setxattr shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 socketpair splice stat statfs statx symlink
  symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime
  timer_settime timerfd_create timerfd_gettime timerfd_settime times tkill truncate umask uname unlink unlinkat utime
  utimensat utimes vfork wait4 waitid write writev
`);

/**
 * Known calls that are refused with EPERM, which programs take for a missing right. Everything else, calls that newer
 * kernels add included, is ENOSYS, so that programs fall back (clone3 to clone, whose flags can be looked at).
 */
const refused = words(`
  acct add_key bpf chroot clock_settime create_module delete_module fanotify_init finit_module fsconfig fsmount fsopen
  fspick get_kernel_syms get_mempolicy init_module ioperm iopl kcmp kexec_file_load kexec_load keyctl lookup_dcookie
  mbind migrate_pages modify_ldt mount mount_setattr move_mount move_pages nfsservctl open_by_handle_at open_tree
  perf_event_open pidfd_getfd pivot_root process_madvise query_module quotactl reboot request_key set_mempolicy
  setdomainname sethostname setns settimeofday swapoff swapon syslog umount2 unshare uselib userfaultfd ustat vhangup
  vmsplice
`);

/** CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET: a namespace made inside is a larger kernel. */
const namespaceFlags = [0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000];

/** PER_LINUX, PER_LINUX32, UNAME26, both, and the query: others change how memory is laid out and mapped. */
const personalities = [0x0, 0x8, 0x20000, 0x20008, 0xffffffff];

/** AF_UNIX, AF_INET, AF_INET6, AF_NETLINK. The others, up to AF_MAX, are said not to exist. */
const socketFamilies = [1, 2, 10, 16];
const otherFamilies = Array.from({ length: 46 }, (_, family) => family).filter((f) => !socketFamilies.includes(f));

/** Regular file (0 is another way to say it), FIFO, socket. Devices are left out, "0/0" too: overlay's whiteout. */
const nodeTypes = [0, 0o100000, 0o010000, 0o140000];
const nodeTypeMask = 0o170000;

const architectures: Readonly<Record<string, string>> = { x64: "SCMP_ARCH_X86_64", arm64: "SCMP_ARCH_AARCH64" };

/**
 * The filter of every container. Only the machine's own instruction set: 32-bit entry points multiplex calls
 * (`socketcall`), which a filter can't look into. A child of Docker's default evaluated without CAP_SYS_ADMIN, stricter
 * in: sockets by family, device nodes, `modify_ldt`, 32-bit code.
 * @param arch Node's `process.arch`
 * @param chroot allowed with CAP_SYS_CHROOT, which package managers of builds want
 */
export function seccompProfile(arch: string, chroot: boolean): SeccompProfile {
  const architecture = architectures[arch];
  if (architecture === undefined) throw new Error(`no seccomp profile for ${arch}`);
  const allow = (names: string[], ...args: SeccompArgument[]) =>
    ({ names, action: "SCMP_ACT_ALLOW", ...(args.length > 0 && { args }) }) as const;
  const refuse = (names: string[], ...args: SeccompArgument[]) =>
    ({ names, action: "SCMP_ACT_ERRNO", errnoRet: EPERM, ...(args.length > 0 && { args }) }) as const;
  return {
    defaultAction: "SCMP_ACT_ERRNO",
    defaultErrnoRet: ENOSYS,
    architectures: [architecture],
    syscalls: [
      allow(chroot ? [...allowed, "chroot"] : allowed),
      refuse(chroot ? refused.filter((name) => name !== "chroot") : refused),
      allow(
        ["clone"],
        masked(
          0,
          namespaceFlags.reduce((all, flag) => all | flag),
          0,
        ),
      ),
      ...namespaceFlags.map((flag) => refuse(["clone"], masked(0, flag, flag))),
      ...personalities.map((value) => allow(["personality"], equal(0, value))),
      ...socketFamilies.map((family) => allow(["socket"], equal(0, family))),
      ...otherFamilies.map((family) => ({ ...refuse(["socket"], equal(0, family)), errnoRet: EAFNOSUPPORT })),
      ...nodeTypes.flatMap((type) => [
        allow(["mknod"], masked(1, nodeTypeMask, type)),
        allow(["mknodat"], masked(2, nodeTypeMask, type)),
      ]),
      ...[0o020000, 0o060000].flatMap((type) => [
        refuse(["mknod"], masked(1, nodeTypeMask, type)),
        refuse(["mknodat"], masked(2, nodeTypeMask, type)),
      ]),
    ],
  };
}

function equal(index: number, value: number): SeccompArgument {
  return { index, value, op: "SCMP_CMP_EQ" };
}

/** OCI's MASKED_EQ: `value` is the mask, `valueTwo` what the masked argument must equal. */
function masked(index: number, mask: number, wanted: number): SeccompArgument {
  return { index, value: mask, valueTwo: wanted, op: "SCMP_CMP_MASKED_EQ" };
}

function words(text: string): string[] {
  return text.trim().split(/\s+/);
}
