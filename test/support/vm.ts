import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";

const repository = join(import.meta.dirname, "../..");
const emulator = "/usr/bin/qemu-system-x86_64";

/** Then a machine that does not end by itself is taken for one that never will. */
const patienceMs = 500_000;

/** A Debian kernel with its modules: the machine's own, or one that was only unpacked (.ci/run). */
export interface Kernel {
  image: string;
  modules: string;
}

/** null: this machine has no emulator or no such kernel. */
export function findKernel(): Kernel | null {
  if (process.arch !== "x64" || !existsSync(emulator)) return null;
  for (const root of ["", join(repository, ".cache/vm")]) {
    if (!existsSync(`${root}/boot`)) continue;
    for (const name of readdirSync(`${root}/boot`)) {
      const modules = `${root}/lib/modules/${name.replace("vmlinuz-", "")}`;
      if (name.startsWith("vmlinuz-") && existsSync(`${modules}/kernel`))
        return { image: `${root}/boot/${name}`, modules };
    }
  }
  return null;
}

/**
 * Boots the kernel in an emulator, with this machine's files to read and nothing but memory to write to, runs a script
 * of the tests there and returns the lines that it printed. Without network. Takes half a minute and more.
 */
export async function runInMachine(kernel: Kernel, script: string): Promise<string[]> {
  const directory = mkdtempSync(`${tmpdir()}/berth-test-vm-`);
  try {
    const initrd = makeInitrd(kernel, script, directory);
    const share = "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap";
    const machine = spawn(
      emulator,
      [
        // By one thread in turn: two at once have crashed a program that compiles its own code, as Node does.
        ...["-machine", "q35", "-accel", "tcg,thread=single", "-cpu", "max", "-smp", "2", "-m", "3072"],
        ...["-display", "none", "-nodefaults", "-no-reboot", "-serial", "stdio"],
        ...["-kernel", kernel.image, "-initrd", initrd, "-append", "console=ttyS0 quiet panic=-1"],
        ...["-fsdev", share, "-device", "virtio-9p-pci,fsdev=host,mount_tag=host"],
      ],
      { stdio: ["ignore", "pipe", "inherit"] },
    );
    const ended = once(machine, "exit");
    const late = setTimeout(() => machine.kill("SIGKILL"), patienceMs);
    try {
      const lines: string[] = [];
      for await (const line of createInterface({ input: machine.stdout })) lines.push(line);
      await ended;
      return lines;
    } finally {
      clearTimeout(late);
      machine.kill("SIGKILL");
    }
  } finally {
    rmSync(directory, { recursive: true });
  }
}

/** An archive with busybox, the modules that reach the host's files, and the two scripts; its path. */
function makeInitrd({ modules }: Kernel, script: string, directory: string): string {
  const root = `${directory}/root`;
  for (const name of ["bin", "dev", "proc", "sys", "lower", "upper", "root"])
    mkdirSync(`${root}/${name}`, { recursive: true });
  cpSync("/bin/busybox", `${root}/bin/busybox`);
  execFileSync("ln", ["-s", "busybox", `${root}/bin/sh`]);
  cpSync(join(import.meta.dirname, "vm/init"), `${root}/init`);
  chmodSync(`${root}/init`, 0o755);
  const guest = readFileSync(join(import.meta.dirname, "vm/guest.sh"), "utf8")
    .replace('"MODULES"', `"${modules}"`)
    .replace('"DIRECTORY"', `"${repository}"`)
    .replace("COMMAND\n", `"${process.execPath}" "${script}"\n`);
  writeFileSync(`${root}/guest.sh`, guest);

  const version = modules.slice(modules.lastIndexOf("/") + 1);
  const target = `${root}/lib/modules/${version}`;
  const base = modules.slice(0, modules.indexOf("/lib/modules/"));
  if (!existsSync(`${modules}/modules.dep`))
    execFileSync("busybox", ["depmod", "-b", base === "" ? "/" : base, version]);
  const needs = new Map(
    readFileSync(`${modules}/modules.dep`, "utf8")
      .split("\n")
      .map((line) => [
        line.slice(0, line.indexOf(":")),
        line
          .slice(line.indexOf(":") + 1)
          .split(" ")
          .filter(Boolean),
      ]),
  );
  for (const [file, others] of needs) {
    if (!/\/(?:virtio_pci|9pnet_virtio|9p|overlay)\.ko/.test(file)) continue;
    for (const each of [file, ...others]) {
      mkdirSync(dirname(`${target}/${each}`), { recursive: true });
      cpSync(`${modules}/${each}`, `${target}/${each}`);
    }
  }
  cpSync(`${modules}/modules.dep`, `${target}/modules.dep`);
  const archive = `${directory}/initrd`;
  execFileSync("/bin/sh", ["-c", `find . | busybox cpio -o -H newc >"$1" 2>/dev/null`, "sh", archive], { cwd: root });
  return archive;
}
