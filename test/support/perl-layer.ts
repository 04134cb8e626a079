import { execFileSync } from "node:child_process";
import { chmodSync, copyFileSync, mkdirSync, realpathSync } from "node:fs";
import { dirname } from "node:path";

/**
 * A layer with the machine's perl, which every Debian has, at /usr/bin/perl: it can make any system call. With
 * /usr/bin/setuid-perl, the same owned by root and set-user-id.
 */
export function makePerlLayer(path: string): void {
  const perl = realpathSync("/usr/bin/perl");
  const libraries = execFileSync("ldd", [perl], { encoding: "utf8" }).match(/\/\S+/g) ?? [];
  for (const [from, to] of [
    [perl, "/usr/bin/perl"],
    [perl, "/usr/bin/setuid-perl"],
    ...libraries.map((file) => [file, file]),
  ]) {
    if (from === undefined || to === undefined) continue;
    mkdirSync(dirname(`${path}${to}`), { recursive: true });
    copyFileSync(realpathSync(from), `${path}${to}`);
    chmodSync(`${path}${to}`, to.endsWith("setuid-perl") ? 0o4755 : 0o755);
  }
}

const numbers: Readonly<Record<string, readonly [x64: number, arm64: number]>> = {
  add_key: [248, 217],
  bpf: [321, 280],
  clone: [56, 220],
  clone3: [435, 435],
  io_uring_setup: [425, 425],
  keyctl: [250, 219],
  mknodat: [259, 33],
  mount: [165, 40],
  move_mount: [429, 429],
  open_by_handle_at: [304, 265],
  open_tree: [428, 428],
  perf_event_open: [298, 241],
  personality: [135, 92],
  pidfd_getfd: [438, 438],
  setns: [308, 268],
  socket: [41, 198],
  unshare: [272, 97],
  userfaultfd: [323, 282],
};

/** A perl program that makes one system call and prints `ok` or the number of its error; children end at once. */
export function systemCall(name: string, args: string): string[] {
  const [x64, arm64] = numbers[name] ?? [];
  const number = process.arch === "arm64" ? arm64 : x64;
  return [
    "/usr/bin/perl",
    "-e",
    `my $p = $$; my @a = (${args}); my $r = syscall(${String(number)}, @a); exit 0 if $p != $$; print $r < 0 ? 0 + $! : "ok", "\\n";`,
  ];
}
