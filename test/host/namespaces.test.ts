import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, existsSync, fstatSync, readdirSync, readlinkSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import {
  hasCode,
  openat2,
  pidfdOpen,
  pidfdSendSignal,
  RESOLVE_IN_ROOT,
  SyscallError,
} from "../../src/isolation/apply/ffi.ts";
import { closeNamespaces, createNamespaces } from "../../src/isolation/apply/namespaces.ts";

const idBase = 900_000_000;

/** Runs a program in both namespaces. */
function inside({ user, net }: { user: number; net: number }, script: string): string {
  const at = (fd: number): string => `/proc/${process.pid}/fd/${fd}`;
  return execFileSync("nsenter", [`--user=${at(user)}`, `--net=${at(net)}`, "sh", "-c", script], { encoding: "utf8" });
}

test("both come from one clone: the user namespace maps 65,536 ids and owns the network", () => {
  const namespaces = createNamespaces(idBase);
  try {
    expect(inside(namespaces, "cat /proc/self/uid_map").trim().split(/\s+/)).toEqual(["0", String(idBase), "65536"]);
    expect(inside(namespaces, "cat /proc/self/gid_map").trim().split(/\s+/)).toEqual(["0", String(idBase), "65536"]);
    expect(inside(namespaces, "cat /proc/self/setgroups")).toBe("allow\n");
    // Only its owner may configure it.
    expect(inside(namespaces, "ip link set lo up; ip -o link show lo")).toContain("LOWER_UP");
    expect(inside(namespaces, "sysctl -n net.ipv4.ping_group_range net.ipv4.ip_unprivileged_port_start")).toBe(
      "0\t65535\n0\n",
    );
  } finally {
    closeNamespaces(namespaces);
  }
});

test("this process stays where it is, and keeps no descriptor, child or namespace", () => {
  const own = (): string[] => ["user", "net", "mnt"].map((name) => readlinkSync(`/proc/self/ns/${name}`));
  const open = (): number => readdirSync("/proc/self/fd").length;
  const before = [own(), open()];
  const seen = new Set<number>();
  for (let i = 0; i < 50; i++) {
    const namespaces = createNamespaces(idBase);
    seen.add(fstatSync(namespaces.net).ino);
    closeNamespaces(namespaces);
  }
  expect([own(), open()]).toEqual(before);
  expect(execFileSync("ps", ["--ppid", String(process.pid), "-o", "stat="], { encoding: "utf8" })).not.toContain("Z");
  expect(seen.size).toBeGreaterThan(0);
});

test("an id range that can't be mapped is an error that leaves nothing", () => {
  const open = (): number => readdirSync("/proc/self/fd").length;
  const before = open();
  expect(() => createNamespaces(2 ** 32 - 1000)).toThrow(/EINVAL|EPERM/);
  expect(open()).toBe(before);
});

test("errors name the call, what it was about, and the errno", () => {
  try {
    pidfdOpen(2 ** 22 + 1);
    expect.unreachable();
  } catch (error) {
    expect(error).toBeInstanceOf(SyscallError);
    expect(hasCode(error, "ESRCH", "EINVAL")).toBe(true);
  }
  const self = pidfdOpen(process.pid);
  pidfdSendSignal(self, 0);
  closeSync(self);
  expect(() => openat2(-1, "some/path", { flags: 0, resolve: RESOLVE_IN_ROOT })).toThrow("openat2 some/path: EBADF");
});

test("a child that is under way ends when this process is killed", async () => {
  const module = join(import.meta.dirname, "../../src/isolation/apply/child.ts");
  const script = `const { startChild } = await import(${JSON.stringify(module)});
    const child = startChild(0, []);
    child.proceed();
    process.getBuiltinModule("node:fs").writeSync(1, String(child.pid));
    process.kill(process.pid, "SIGKILL");`;
  const killed = spawn(process.execPath, ["--input-type=module", "-e", script]);
  const [pid] = (await once(killed.stdout, "data")) as [Buffer];
  expect(Number(pid.toString())).toBeGreaterThan(1);
  await expect.poll(() => existsSync(`/proc/${pid.toString()}`), { timeout: 20_000 }).toBe(false);
});
