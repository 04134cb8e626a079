import { createHash } from "node:crypto";
import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Protection } from "../../src/isolation/plan/protection.ts";
import { makePerlLayer, systemCall } from "../support/perl-layer.ts";
import { TestHost, type Wish } from "../support/sandboxes.ts";

// The profile of a container, seen from inside. That each of its protections matters: controls.test.ts.

const EPERM = 1;
const ENOSYS = 38;
const EAFNOSUPPORT = 97;

let host: TestHost;
let perl: string;
let canary: string;
beforeAll(async () => {
  host = await TestHost.create();
  perl = `${host.config.dataDir}/perl`;
  makePerlLayer(perl);
  canary = `${mkdtempSync("/tmp/berth-canary-")}/file`;
  writeFileSync(canary, "untouched", { mode: 0o666 });
});
afterAll(async () => {
  await host.destroy();
  expect(readFileSync(canary, "utf8")).toBe("untouched");
  rmSync(canary.slice(0, canary.lastIndexOf("/")), { recursive: true });
});

async function inside(script: string, without: Protection[] = [], wish: Wish = {}): Promise<string> {
  return (await host.shell(`exec 2>&1; ${script}`, { layers: [host.layer, perl], ...wish }, without)).out.trim();
}

async function call(name: string, args: string, without: Protection[] = [], wish: Wish = {}): Promise<string> {
  const { out } = await host.run(systemCall(name, args), { layers: [host.layer, perl], ...wish }, without);
  return out.trim();
}

describe("namespaces", () => {
  const all = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"] as const;
  const of = (pid: number | "self") =>
    Object.fromEntries(all.map((name) => [name, readlinkSync(`/proc/${String(pid)}/ns/${name}`)]));

  test("are a container's own, and no other's", async () => {
    const [one, two] = [await host.start(), await host.start()];
    const [host_, first, second] = [of("self"), of(one.pid), of(two.pid)];
    for (const name of all) expect(new Set([host_[name], first[name], second[name]]).size, name).toBe(3);
    await host.remove(one);
    await host.remove(two);
  });

  test.each(["pid", "ipc", "uts", "cgroup"] as const)("%s: without it, it is the host's", async (name) => {
    const spec = await host.start({}, [name]);
    expect(readlinkSync(`/proc/${String(spec.pid)}/ns/${name}`)).toBe(readlinkSync(`/proc/self/ns/${name}`));
    await host.remove(spec);
  });

  test("pid: no other process is seen", async () => {
    expect(await inside("ls -d /proc/[0-9]* | wc -l")).toMatch(/^[1-4]$/);
    expect(Number(await inside("ls -d /proc/[0-9]* | wc -l", ["pid"]))).toBeGreaterThan(10);
  });

  test("cgroup: the path within the host is not shown", async () => {
    expect(await inside("cat /proc/self/cgroup")).not.toContain("berth-");
    expect(await inside("cat /proc/self/cgroup", ["cgroup"])).toContain("berth-");
  });

  test("user: 65,536 ids of the slot's range, and root on the host is nobody", async () => {
    const spec = await host.start();
    const base = await (await host.worker()).call<number>("idBaseOf", spec.slot);
    expect(
      readFileSync(`/proc/${String(spec.pid)}/uid_map`, "utf8")
        .trim()
        .split(/\s+/),
    ).toEqual(["0", String(base), "65536"]);
    expect(
      readFileSync(`/proc/${String(spec.pid)}/gid_map`, "utf8")
        .trim()
        .split(/\s+/),
    ).toEqual(["0", String(base), "65536"]);
    expect(/^Uid:\t(\d+)/m.exec(readFileSync(`/proc/${String(spec.pid)}/status`, "utf8"))?.[1]).toBe(String(base));
    await host.remove(spec);
    expect(await inside("stat -c %u /proc/sys/kernel/core_pattern /dev/null /")).toBe("65534\n65534\n0");
  });

  test("net: only its own links", async () => {
    expect(await inside("ls /sys/class/net")).toBe("eth0\nlo");
    expect(await inside("ls /sys/class/net; ip link | grep -c BROADCAST", [], { network: "none" })).toBe("lo\n0");
  });
});

describe("capabilities", () => {
  const status = "grep -E '^(Cap|NoNew|Seccomp:)' /proc/self/status | tr -d '\\t'";
  test("are eight, none inheritable or ambient, and no more can be gained", async () => {
    const mask = "00000000000004fb";
    expect((await inside(status)).split("\n")).toEqual([
      "CapInh:0000000000000000",
      `CapPrm:${mask}`,
      `CapEff:${mask}`,
      `CapBnd:${mask}`,
      "CapAmb:0000000000000000",
      "NoNewPrivs:1",
      "Seccomp:2",
    ]);
  });
  test("of another user are none", async () => {
    expect(await inside(status, [], { process: { user: "app" } })).toContain(
      "CapPrm:0000000000000000\nCapEff:0000000000000000",
    );
  });
  test("can be dropped, and two can be added; what builds need they have", async () => {
    expect(await inside(status, [], { capabilities: { add: ["SYS_CHROOT"], drop: ["ALL"] } })).toContain(
      "CapBnd:0000000000040000",
    );
    expect(await inside(status, [], { profile: "build" })).toContain("CapBnd:00000000800404fb");
    expect(await inside(status, [], { capabilities: { add: ["SYS_ADMIN", "NET_RAW"], drop: [] } })).toContain(
      "CapBnd:00000000000004fb",
    );
  });
  test("chroot needs its capability, and then works", async () => {
    expect(await inside("chroot / true; echo $?")).toMatch(/Operation not permitted\n1$/);
    expect(await inside("chroot / true; echo $?", [], { profile: "build" })).toBe("0");
  });
});

describe("seccomp", () => {
  const zeros = `"\\0" x 256`;
  const newUser = "0x10000000";
  const child = "17";
  test.each<[string, string, number, string]>([
    // The call, its arguments, the error with the filter, and what it gives without.
    ["unshare", newUser, EPERM, "ok"],
    ["clone", `${newUser}|${child}, 0, 0, 0, 0`, EPERM, "ok"],
    ["clone3", `${zeros}, 88`, ENOSYS, "ok"],
    ["keyctl", "0, -3, 0", EPERM, "ok"],
    ["add_key", `"user", "name", "text", 4, -2`, EPERM, "ok"],
    ["io_uring_setup", `1, ${zeros}`, ENOSYS, "ok"],
    ["userfaultfd", "1", EPERM, "ok"],
    ["socket", "40, 1, 0", EAFNOSUPPORT, "ok"],
    ["socket", "17, 3, 0", EAFNOSUPPORT, "1"],
    ["personality", "0x40000", ENOSYS, "ok"],
    ["mknodat", `-100, "/dev/shm/whiteout", 0020000, 0`, EPERM, "ok"],
    ["open_tree", `-100, "/", 0`, EPERM, "ok"],
    ["pidfd_getfd", "-1, 0, 0", EPERM, "9"],
    ["setns", "-1, 0", EPERM, "9"],
    ["open_by_handle_at", `-1, ${zeros}, 0`, EPERM, "9|22"],
  ])("refuses %s(%s)", async (name, args, error, open) => {
    expect(await call(name, args)).toBe(String(error));
    expect(await call(name, args, ["seccomp"])).toMatch(new RegExp(`^(?:${open})$`));
  });

  test("a nested user namespace is refused with CAP_SYS_ADMIN too", async () => {
    expect(await call("unshare", newUser, ["capabilities"])).toBe(String(EPERM));
  });

  test("ordinary programs are not hindered", async () => {
    expect(
      await inside(
        "mkfifo /tmp/p && (echo x >/tmp/p &) && cat /tmp/p && time true 2>/dev/null && nproc >/dev/null; echo $?",
      ),
    ).toBe("x\n0");
    expect(await call("socket", "2, 1, 0")).toBe("ok");
    expect(await call("socket", "1, 1, 0")).toBe("ok");
    expect(await call("mknodat", `-100, "/tmp/file", 0100644, 0`)).toBe("ok");
  });
});

describe("paths of the kernel", () => {
  test.each(["/proc/interrupts", "/proc/keys", "/proc/timer_list"])("%s is masked", async (path) => {
    expect(await inside(`stat -c %F ${path}; wc -c <${path}`)).toBe("character special file\n0");
    expect(await inside(`stat -c %F ${path}`, ["maskedPaths"])).toMatch(/^regular/);
  });
  test("/sys/firmware is empty", async () => {
    expect(await inside("ls /sys/firmware")).toBe("");
    expect(await inside("ls /sys/firmware", ["maskedPaths"])).not.toBe("");
  });
  test("cgroups can be read", async () => {
    expect(await inside("cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null")).toBe(
      String(64 * 2 ** 20),
    );
  });
});

describe("an image that lies about the root", () => {
  test.each(["/proc", "/dev", "/sys", "/etc"])("with %s as a link out of it does not reach the host", async (path) => {
    const layer = `${host.config.dataDir}/liar${path}`;
    mkdirSync(layer, { recursive: true });
    symlinkSync(`../../../../..${canary.slice(0, canary.lastIndexOf("/"))}`, `${layer}${path}`);
    const before = readdirSync(canary.slice(0, canary.lastIndexOf("/")));
    try {
      const kind = await inside("stat -fc %T /proc /dev", [], { layers: [host.layer, layer] });
      // Where it starts, the runtime's own mounts are in place.
      expect(kind).toMatch(/^(proc|0x9fa0|UNKNOWN)?[\s\S]*tmpfs$/);
    } catch (error) {
      expect(error).toMatchObject({ code: expect.stringMatching(/start_failed|command_not_found/) as string });
    }
    expect(readdirSync(canary.slice(0, canary.lastIndexOf("/")))).toEqual(before);
  });

  test.each(["null", "console", "tty", "pts", "shm"])("with /dev/%s as a link gets a real one", async (name) => {
    const layer = `${host.config.dataDir}/device-${name}`;
    mkdirSync(`${layer}/dev`, { recursive: true });
    symlinkSync("../../../../etc/passwd", `${layer}/dev/${name}`);
    expect(
      await inside(`readlink /dev/${name}; test -L /dev/${name}; echo $?`, [], {
        layers: [host.layer, layer],
        process: { tty: true },
      }),
    ).toMatch(/1$/);
  });
});

describe("what the runtime holds", () => {
  test("no descriptor beyond standard input, output and error", async () => {
    expect(
      await inside(`/usr/bin/perl -e 'opendir(D, "/proc/self/fd"); print join " ", sort grep /\\d/, readdir D'`),
    ).toBe("0 1 2 3");
  });

  test("the runtime's own file can't be overwritten through a container", async () => {
    const hash = () => createHash("sha256").update(readFileSync("/usr/bin/crun")).digest("hex");
    const before = hash();
    const layer = `${host.config.dataDir}/self`;
    mkdirSync(`${layer}/bin`, { recursive: true });
    symlinkSync("/proc/self/exe", `${layer}/bin/self`);
    const worker = await host.worker();
    const spec = await host.start({ layers: [host.layer, perl, layer], capabilities: { add: [], drop: [] } });
    const overwrite = `for (1..2000) { for my $p (glob "/proc/[0-9]*/exe") { next if $p =~ /self/; if (open my $f, "+<", $p) { (readlink $p) =~ /crun/ and print $f "x"; } } }`;
    const attack = worker.call("exec", spec.id, { args: ["/usr/bin/perl", "-e", overwrite] });
    for (let round = 0; round < 3; round++) {
      await worker.call("exec", spec.id, { args: ["/bin/self", "--version"] }).catch(() => undefined);
    }
    await attack;
    await host.remove(spec);
    expect(hash()).toBe(before);
  });

  test("a working directory in /proc/self/fd leads nowhere", async () => {
    for (const fd of ["3", "7", "8", "9", "10"]) {
      const out = await inside("pwd; ls ../../../../../.. 2>&1 | head -3", [], {
        process: { cwd: `/proc/self/fd/${fd}` },
      }).catch((error: unknown) => (error as { code: string }).code);
      expect(out).not.toMatch(/process_api|vmlinuz|lost\+found/);
    }
  });
});

test("the worker holds no more descriptors than before", async () => {
  const worker = await host.worker();
  const count = () => readdirSync(`/proc/${String(worker.pid)}/fd`).length;
  // Each slot that is ready holds some: they are counted with the pool full, before and after. It is with eight of the
  // usual disk and two of the size that was used last.
  const poolIsFull = () => expect.poll(() => host.preparedSlots(), { timeout: 20_000 }).toBe(10);
  await inside("true");
  await poolIsFull();
  const before = count();
  expect(before).toBeLessThan(200);
  for (let round = 0; round < 5; round++) await inside("true");
  await expect(host.run(["absent"])).rejects.toThrow();
  await poolIsFull();
  await expect.poll(count).toBeLessThanOrEqual(before + 3);
});
