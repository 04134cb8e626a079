import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { effectiveCapabilities } from "../../src/core/capability.ts";
import { BerthError } from "../../src/core/errors.ts";
import { hostFiles, nameservers, usedResolvConf } from "../../src/isolation/plan/files.ts";
import { blocks, idBase, layout, slotLayout, usableSlots } from "../../src/isolation/plan/layout.ts";
import { cgroupLimits, processLimits } from "../../src/isolation/plan/limits.ts";
import { seccompProfile } from "../../src/isolation/plan/seccomp.ts";
import { runtimeSpec, type SpecInput } from "../../src/isolation/plan/spec.ts";
import { resolveUser } from "../../src/isolation/plan/user.ts";

const input: SpecInput = {
  process: {
    args: ["/bin/web"],
    env: ["PATH=/bin"],
    cwd: "/",
    user: { uid: 1000, gid: 1000, additionalGids: [1001], home: "/home/app" },
    tty: false,
  },
  hostname: "web",
  rootfs: "/run/berth/abc123/slots/7/rootfs",
  readOnlyRootfs: false,
  hostFiles: "/run/berth/abc123/slots/7/disk/etc",
  mounts: [],
  limits: { cpus: 0.5, memory: 64 * 2 ** 20, pids: 512 },
  capabilities: { add: [], drop: [] },
  profile: "container",
  namespaces: { user: "/proc/1/fd/3", network: "/proc/1/fd/4", idBase: 1_048_576 },
  cgroup: "/berth-abc123/prj_a/ctr_b",
  seccomp: { get: (chroot) => ({ profile: seccompProfile("x64", chroot), bpf: chroot ? "with" : "without" }) },
  runtime: "crun",
  hostOpenFiles: 20_000,
};

describe("the runtime's config", () => {
  test("more mounts come after those that every container has, without devices or set-user-id", () => {
    const mounts = [
      { kind: "bind", target: "/cache", source: "/run/berth/a/slots/7/mounts/0", writable: true },
      { kind: "bind", target: "/run/secrets/x", source: "/run/berth/a/slots/7/mounts/1/file", writable: false },
      { kind: "tmpfs", target: "/t", size: 4096 },
      { kind: "tmpfs", target: "/u", size: null },
    ] as const;
    const [cache, secret, sized, unsized] = runtimeSpec({ ...input, mounts }).mounts.slice(-4);
    expect(cache?.options).toEqual(["bind", "nosuid", "nodev", "rw"]);
    expect(secret).toMatchObject({ destination: "/run/secrets/x", options: ["bind", "nosuid", "nodev", "ro"] });
    expect(sized).toEqual({
      destination: "/t",
      type: "tmpfs",
      source: "tmpfs",
      options: ["nosuid", "nodev", "size=4096"],
    });
    expect(unsized?.options).toEqual(["nosuid", "nodev"]);
  });

  test("has every namespace, joins the two that are made ahead, and bounds everything", () => {
    const spec = runtimeSpec(input);
    expect(spec.linux.namespaces).toEqual([
      { type: "user", path: "/proc/1/fd/3" },
      { type: "network", path: "/proc/1/fd/4" },
      ...["mount", "pid", "ipc", "uts", "cgroup"].map((type) => ({ type })),
    ]);
    expect(spec.linux.resources).toEqual({
      devices: [{ allow: false, access: "rwm" }],
      memory: { limit: 67_108_864, swap: 67_108_864 },
      cpu: { shares: 512, quota: 50_000, period: 100_000 },
      pids: { limit: 512 },
    });
    expect(spec.process.noNewPrivileges).toBe(true);
    expect(spec.process.env).toContain("HOME=/home/app");
    expect(spec.annotations).toEqual({ "run.oci.seccomp_bpf_data": "without" });
  });

  test("gives builds two more capabilities, and the filter that fits", () => {
    const spec = runtimeSpec({ ...input, profile: "build" });
    expect(spec.process.capabilities.bounding).toEqual(expect.arrayContaining(["CAP_SETFCAP", "CAP_SYS_CHROOT"]));
    expect(spec.annotations).toEqual({ "run.oci.seccomp_bpf_data": "with" });
  });

  test("tells runc the filter and the mapping", () => {
    const spec = runtimeSpec({ ...input, runtime: "runc" });
    expect(spec.annotations).toEqual({});
    expect(spec.linux.seccomp?.defaultAction).toBe("SCMP_ACT_ERRNO");
    expect(spec.linux.uidMappings).toEqual([{ containerID: 0, hostID: 1_048_576, size: 65_536 }]);
  });

  test("a wish for more capabilities than may be added is not heard", () => {
    expect(effectiveCapabilities({ add: ["SYS_ADMIN", "SETFCAP"], drop: ["ALL"] })).toEqual(["SETFCAP"]);
    expect(effectiveCapabilities({ add: [], drop: ["KILL"] })).not.toContain("KILL");
  });

  test("limits stay within what the kernel takes", () => {
    expect(cgroupLimits({ cpus: 0.001, memory: 1, pids: 1 }).cpu).toEqual({ shares: 2, quota: 1000, period: 100_000 });
    expect(cgroupLimits({ cpus: 1000, memory: 1, pids: 1 }).cpu?.shares).toBe(262_144);
    expect(processLimits(1024)[0]).toEqual({ type: "RLIMIT_NOFILE", soft: 1024, hard: 1024 });
  });
});

describe("the seccomp profile", () => {
  const profile = seccompProfile("x64", false);
  const without = profile.syscalls.filter((rule) => rule.args === undefined);
  const namesOf = (action: string) => without.filter((rule) => rule.action === action).flatMap((rule) => rule.names);

  test("says one thing about each call", () => {
    const all = [...namesOf("SCMP_ACT_ALLOW"), ...namesOf("SCMP_ACT_ERRNO")];
    expect(new Set(all).size).toBe(all.length);
    const conditional = new Set(
      profile.syscalls.filter((rule) => rule.args !== undefined).flatMap((rule) => rule.names),
    );
    expect(all.filter((name) => conditional.has(name))).toEqual([]);
  });

  test("never allows what reaches out of a container", () => {
    const dangerous =
      "mount umount2 pivot_root move_mount open_tree fsopen fsmount fsconfig mount_setattr unshare setns clone3 bpf keyctl " +
      "add_key request_key io_uring_setup io_uring_enter io_uring_register userfaultfd perf_event_open kexec_load " +
      "init_module finit_module delete_module open_by_handle_at quotactl reboot swapon syslog settimeofday clock_settime " +
      "acct iopl ioperm modify_ldt socketcall pidfd_getfd process_madvise vmsplice lookup_dcookie fanotify_init";
    expect(dangerous.split(" ").filter((name) => namesOf("SCMP_ACT_ALLOW").includes(name))).toEqual([]);
  });

  test("allows chroot only with its capability, and knows both architectures only", () => {
    expect(namesOf("SCMP_ACT_ERRNO")).toContain("chroot");
    expect(seccompProfile("arm64", true).syscalls[0]?.names).toContain("chroot");
    expect(() => seccompProfile("mips", false)).toThrow("mips");
  });
});

describe("users", () => {
  const passwd =
    "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n7:x:8:8::/seven:/bin/sh\nbroken\nfar:x:65536:0::/:";
  const group = "root:x:0:root\napp:x:1000:\nextra:x:1001:root,app\nhuge:x:70000:app\n";

  test.each([
    ["", { uid: 0, gid: 0, additionalGids: [0, 1001], home: "/root" }],
    ["app", { uid: 1000, gid: 1000, additionalGids: [1001], home: "/home/app" }],
    ["1000", { uid: 1000, gid: 1000, additionalGids: [1001], home: "/home/app" }],
    ["app:extra", { uid: 1000, gid: 1001, additionalGids: [], home: "/home/app" }],
    ["5:6", { uid: 5, gid: 6, additionalGids: [], home: "/" }],
    // A name that looks like a number is a name first.
    ["7", { uid: 8, gid: 8, additionalGids: [], home: "/seven" }],
  ])("%j", (text, user) => {
    expect(resolveUser(text, passwd, group)).toEqual(user);
  });

  test("whatever is asked for gives an id within the range or an error, never another's", () => {
    fc.assert(
      fc.property(fc.string(), fc.string(), fc.string(), (text, accounts, groups) => {
        try {
          const user = resolveUser(text, accounts, groups);
          for (const id of [user.uid, user.gid, ...user.additionalGids]) expect(id).toBeLessThan(65_536);
          if (user.uid === 0 && text !== "" && !/^0+(:|$)/.test(text)) expect(accounts).toContain(text.split(":")[0]);
        } catch (error) {
          expect(error).toBeInstanceOf(BerthError);
          expect((error as BerthError).code).toBe("invalid_user");
        }
      }),
    );
  });
});

describe("the host's files", () => {
  test("resolvers on loopback are replaced, and the rest is kept", () => {
    expect(nameservers("nameserver 127.0.0.53\nnameserver ::1\n")).toEqual(["1.1.1.1", "8.8.8.8"]);
    expect(nameservers("nameserver 127.0.0.1\nnameserver 10.0.0.2\nnameserver nonsense\n")).toEqual(["10.0.0.2"]);
    const asked = "nameserver 10.0.0.3\n";
    expect(usedResolvConf(["nameserver 127.0.0.53\n", asked])).toBe(asked);
    expect(usedResolvConf(["nameserver 10.0.0.2\n", asked])).toBe("nameserver 10.0.0.2\n");
    expect(usedResolvConf(["nameserver ::1\n"])).toBe("nameserver ::1\n");
    expect(usedResolvConf([])).toBe("");
    const files = hostFiles("web", "10.88.0.1", "search example.org\noptions ndots:2\nnameserver 10.0.0.2\n");
    expect(files["resolv.conf"]).toBe("nameserver 10.0.0.2\nsearch example.org\noptions ndots:2\n");
    expect(files.hosts).toContain("10.88.0.1\tweb\n");
  });
});

test("no two slots of any two instances share an id, and all fit into 32 bits", () => {
  expect(idBase(0, 0)).toBe(1_048_576);
  expect(idBase(1, 0) - idBase(0, usableSlots - 1)).toBeGreaterThanOrEqual(65_536);
  expect(idBase(blocks - 1, usableSlots - 1) + 65_535).toBeLessThan(2 ** 32 - 2);
});

test("what the runtime and the monitor are given fits a socket's path", () => {
  const paths = slotLayout(
    layout({ instance: "abc123", runDir: "/run/berth/abc123", dataDir: "/var/lib/berth" }),
    2046,
  );
  expect(`${paths.dir}/attach`.length).toBeLessThan(108);
});
