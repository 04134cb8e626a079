import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type Protection, protections } from "../../src/isolation/plan/protection.ts";
import { Enclosure } from "../support/enclosure.ts";
import { makePerlLayer, systemCall } from "../support/perl-layer.ts";
import { readLog, TestHost, type Wish } from "../support/sandboxes.ts";

// Each protection, with a probe that it stops, and that the probe succeeds once that protection is off. Where several
// stop one probe, all sets of them are tried: while a single one is left, the probe fails; without all it succeeds.
// "The host" is an enclosure of namespaces, and what a probe would do to it is harmless where it succeeds.

interface Control {
  /** What a container tries. */
  probe: string;
  /** Everything that stops it. */
  stoppedBy: readonly Protection[];
  /** What succeeds: a script whose output has the words, or a system call that is let through. */
  tries: { script: string; shows: string | RegExp } | { call: readonly [name: string, args: string] };
  wish?: Wish;
  /** What the probe needs of this machine's kernel. */
  needs?: boolean;
}

const MiB = 2 ** 20;
const kernel = (setting: string): number => Number(readFileSync(`/proc/sys/kernel/${setting}`, "utf8"));
/** Opens a file for writing and writes nothing. */
const opens = (path: string) => ({ script: `: >>${path} && echo opened`, shows: "opened" });

let enclosure: Enclosure;
let host: TestHost;
let perl: string;
let canary: string;
let served: string;

beforeAll(async () => {
  canary = mkdtempSync("/tmp/berth-canary-");
  writeFileSync(`${canary}/file`, "the host's");
  enclosure = await Enclosure.create();
  const perlOf = (script: string): string[] => ["/usr/bin/perl", "-e", script];
  served = await enclosure.serve(
    ...perlOf(`use Socket; $| = 1; socket(S, PF_INET, SOCK_STREAM, 0); bind(S, sockaddr_in(0, INADDR_LOOPBACK)) or die;
      listen(S, 9); print +(sockaddr_in(getsockname S))[0], "\\n"; while (accept(C, S)) { print C "served\\n"; close C }`),
  );
  await enclosure.run(...perlOf("print msgget(0x5ca1ab1e, 01600) // die"));
  host = await TestHost.create(null, { within: enclosure.enter });
  perl = `${host.config.dataDir}/perl`;
  makePerlLayer(perl);
});
afterAll(async () => {
  await host.destroy();
  await enclosure.end();
  expect(readFileSync(`${canary}/file`, "utf8")).toBe("the host's");
  rmSync(canary, { recursive: true });
});

const controls: Control[] = [
  {
    probe: "read what only the machine's root may",
    stoppedBy: ["user"],
    tries: { script: "head -n 1 /proc/slabinfo", shows: "slabinfo - version" },
  },
  {
    probe: "leave the root directory by chroot",
    stoppedBy: ["mount", "user"],
    tries: {
      script: `/usr/bin/perl -e 'mkdir "/in"; chroot "/in" or die $!; chdir ".." for 1..20; chroot "."; exec "/bin/busybox", "cat", "CANARY/file"; print $!'`,
      shows: "the host's",
    },
    wish: { profile: "build" },
  },
  {
    probe: "reach a server on the host's loopback",
    stoppedBy: ["network"],
    tries: { script: "nc -w 1 127.0.0.1 SERVED", shows: "served" },
  },
  {
    probe: "see a process of the host",
    stoppedBy: ["pid"],
    tries: { script: `cat /proc/${String(process.pid)}/comm && echo seen`, shows: "seen" },
  },
  {
    probe: "see a message queue of the host",
    stoppedBy: ["ipc"],
    tries: { script: "cat /proc/sysvipc/msg", shows: String(0x5ca1ab1e) },
  },
  { probe: "learn the host's name", stoppedBy: ["uts"], tries: { script: "uname -n", shows: Enclosure.hostname } },
  {
    probe: "learn where in the host's cgroups it is",
    stoppedBy: ["cgroup"],
    tries: { script: "cat /proc/self/cgroup", shows: "berth-" },
  },

  {
    probe: "administer its network",
    stoppedBy: ["capabilities"],
    tries: { script: "ip link set lo down && echo down", shows: "down" },
  },
  {
    probe: "gain by a set-user-id program",
    stoppedBy: ["noNewPrivileges"],
    tries: { script: "/usr/bin/setuid-perl -e 'print qq(is $>\\n)'", shows: "is 0" },
    wish: { process: { user: "app" } },
  },
  { probe: "make a user namespace", stoppedBy: ["seccomp"], tries: { call: ["unshare", "0x10000000"] } },
  {
    probe: "mount a filesystem",
    stoppedBy: ["seccomp", "capabilities"],
    tries: { call: ["mount", `"none", "/tmp", "tmpfs", 0, 0`] },
  },
  {
    probe: "load a BPF map into the kernel",
    stoppedBy: kernel("unprivileged_bpf_disabled") === 0 ? ["seccomp"] : ["seccomp", "capabilities", "user"],
    tries: { call: ["bpf", `0, pack("L12", 2, 4, 4, 1), 48`] },
  },
  {
    probe: "count events of the kernel",
    stoppedBy: kernel("perf_event_paranoid") <= 1 ? ["seccomp"] : ["seccomp", "capabilities", "user"],
    tries: { call: ["perf_event_open", `pack("LLQ x112", 1, 128, 0), 0, -1, -1, 0`] },
  },
  {
    probe: "make a device node",
    stoppedBy: ["seccomp", "capabilities", "user"],
    tries: { call: ["mknodat", `-100, "/tmp/null", 0020666, 0x103`] },
  },
  {
    probe: "open a device of the host",
    stoppedBy: ["devices", "seccomp", "capabilities", "user"],
    tries: { script: "mknod /loop-control c 10 237 && : </loop-control && echo opened", shows: "opened" },
  },

  {
    probe: "see a masked file",
    stoppedBy: ["maskedPaths"],
    tries: { script: "stat -c %F /proc/keys", shows: /^regular/ },
  },
  {
    probe: "read a masked file of the machine's root",
    stoppedBy: ["maskedPaths", "user"],
    tries: { script: "head -c 10 /proc/timer_list", shows: "Timer List" },
  },
  {
    probe: "look into the firmware's tables",
    stoppedBy: ["maskedPaths"],
    tries: { script: "ls -d /sys/firmware/*", shows: /^\/sys\/firmware\/\w/m },
    needs: existsSync("/sys/firmware/acpi") || existsSync("/sys/firmware/memmap"),
  },
  {
    probe: "change a setting of its namespaces",
    stoppedBy: ["readonlyPaths"],
    tries: { script: "echo 9000 >/proc/sys/kernel/msgmax; cat /proc/sys/kernel/msgmax", shows: /^9000$/m },
  },
  {
    probe: "write the pattern of core files",
    stoppedBy: ["readonlyPaths", "user"],
    tries: opens("/proc/sys/kernel/core_pattern"),
  },
  {
    probe: "write the trigger of system requests",
    stoppedBy: ["readonlyPaths", "user"],
    tries: opens("/proc/sysrq-trigger"),
    needs: existsSync("/proc/sysrq-trigger"),
  },
  {
    probe: "write a setting of the machine's memory",
    stoppedBy: ["readonlyMounts", "user"],
    tries: opens("/sys/kernel/mm/transparent_hugepage/enabled"),
    needs: existsSync("/sys/kernel/mm/transparent_hugepage/enabled"),
  },
  {
    probe: "make a control group",
    stoppedBy: ["readonlyMounts", "user"],
    tries: { script: "cd /sys/fs/cgroup; [ -d memory ] && cd memory; mkdir mine && echo made", shows: "made" },
  },

  {
    probe: "fill the memory",
    stoppedBy: ["memory"],
    tries: { script: "dd if=/dev/zero of=/dev/shm/fill bs=1M count=50 2>/dev/null && echo filled", shows: "filled" },
    wish: { limits: { memory: 32 * MiB } },
  },
  {
    // Waits are counted, so it shows on a busy machine as well.
    probe: "compute without waiting",
    stoppedBy: ["cpu"],
    tries: {
      script:
        "/usr/bin/perl -e '1 while times < 0.5'; cat /sys/fs/cgroup/cpu.stat /sys/fs/cgroup/cpu/cpu.stat 2>/dev/null",
      shows: /nr_throttled 0$/m,
    },
    wish: { limits: { cpus: 0.2 } },
  },
  {
    probe: "start any number of processes",
    stoppedBy: ["pids"],
    tries: { script: "for i in $(seq 50); do sleep 100 & done; echo started", shows: /^started$/ },
    wish: { limits: { pids: 20 } },
  },
  {
    probe: "write core files",
    stoppedBy: ["rlimits"],
    tries: { script: "ulimit -c unlimited && echo raised", shows: "raised" },
  },
];

/** Whether a container without these protections gets through with its probe. */
async function succeeds({ tries, wish = {} }: Control, without: Protection[]): Promise<boolean> {
  const args =
    "call" in tries
      ? systemCall(...tries.call)
      : ["/bin/sh", "-c", `exec 2>&1; ${tries.script.replace("CANARY", canary).replace("SERVED", served)}`];
  const shows = "call" in tries ? /^ok$/ : tries.shows;
  const worker = await host.worker();
  const process = { ...wish.process, args };
  const spec = await host.start({ layers: [host.layer, perl], ...wish, process }, without);
  try {
    await worker.exited(spec.id);
    const out = readLog(spec.log).trim();
    return typeof shows === "string" ? out.includes(shows) : shows.test(out);
  } finally {
    if (without.includes("mount")) await unmountInside(spec.slot);
    await host.remove(spec);
  }
}

/** Takes away what a runtime has mounted in its worker's own namespace, for want of another. */
async function unmountInside(slot: number): Promise<void> {
  const { runDir } = host.config;
  await enclosure.run(
    "nsenter",
    `--mount=${runDir}/mntns`,
    "umount",
    "--recursive",
    `${runDir}/slots/${String(slot)}/rootfs`,
  );
}

/** Every subset that lacks something, the empty one first. */
function* properSubsets<T>(all: readonly T[]): Generator<T[]> {
  for (let bits = 0; bits < 2 ** all.length - 1; bits++) yield all.filter((_, index) => ((bits >> index) & 1) === 1);
}

describe("a container can't", () => {
  test.each(controls.filter(({ needs }) => needs !== false))("$probe: $stoppedBy", async (control) => {
    for (const without of properSubsets(control.stoppedBy)) {
      // A container that can't even be made reaches nothing.
      const got = await succeeds(control, without).catch((error: unknown) => {
        expect(error).toMatchObject({ code: "start_failed" });
        return false;
      });
      expect(got, `without ${without.join(", ")}`).toBe(false);
    }
    expect(await succeeds(control, [...control.stoppedBy])).toBe(true);
  });
});

test("every protection has a control, and most have one of their own", () => {
  expect(new Set(controls.flatMap(({ stoppedBy }) => stoppedBy))).toEqual(new Set(protections));
  const alone = new Set(controls.flatMap(({ stoppedBy }) => (stoppedBy.length === 1 ? stoppedBy : [])));
  // What these stop, the user namespace stops as well.
  expect(protections.filter((name) => !alone.has(name))).toEqual(["mount", "readonlyMounts", "devices"]);
});
