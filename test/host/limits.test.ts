import { statSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Protection } from "../../src/isolation/plan/protection.ts";
import { leftovers } from "../support/leftovers.ts";
import { makePerlLayer } from "../support/perl-layer.ts";
import { readLog, TestHost, type Wish } from "../support/sandboxes.ts";

// What a container may use, tried from inside. That the same goes through without the limit: controls.test.ts.

const MiB = 2 ** 20;

let host: TestHost;
let perl: string;
beforeAll(async () => {
  host = await TestHost.create();
  perl = `${host.config.dataDir}/perl`;
  makePerlLayer(perl);
});
afterAll(async () => {
  await host.stop();
  try {
    expect(leftovers(host)).toEqual([]);
  } finally {
    await host.destroy();
  }
});

const shell = (script: string, wish: Wish = {}, without: Protection[] = []) =>
  host.shell(`exec 2>&1; ${script}`, { layers: [host.layer, perl], ...wish }, without);

describe("memory", () => {
  const allocate = `/usr/bin/perl -e '$x = "x" x 100_000_000; print length $x'`;
  test("more than the limit ends the process, and says why", async () => {
    const { end } = await host.run(["/usr/bin/perl", "-e", `$x = "x" x 100_000_000`], {
      layers: [host.layer, perl],
      limits: { memory: 32 * MiB },
    });
    expect(end).toMatchObject({ state: "exited", exitCode: 137, oomKilled: true });
    const open = await shell(allocate, { limits: { memory: 32 * MiB } }, ["memory"]);
    expect(open.out).toBe("100000000");
    expect(open.end).toMatchObject({ exitCode: 0, oomKilled: false });
  });
  test("/dev/shm has a size of its own", async () => {
    const { out } = await shell("dd if=/dev/zero of=/dev/shm/fill bs=1M count=100; stat -c %s /dev/shm/fill", {
      limits: { memory: 256 * MiB },
    });
    expect(out).toContain("No space left on device");
    expect(out).toContain(String(64 * MiB));
  });
});

test("pids: a fork bomb ends at the limit, and hurts nobody else", async () => {
  const bomb = "for i in $(seq 50); do sleep 100 & done; echo $(($(ls -d /proc/[0-9]* | wc -l)))";
  expect((await shell(bomb, { limits: { pids: 20 } })).out).toContain("can't fork");
  const worker = await host.worker();
  const spec = await host.start({
    process: { args: ["/bin/sh", "-c", "f() { f | f & }; f; sleep 100"] },
    limits: { pids: 40 },
  });
  const neighbour = await host.start();
  expect(await worker.call("exec", neighbour.id, { args: ["echo", "fine"] })).toMatchObject({ stdout: "fine\n" });
  await host.remove(spec);
  await host.remove(neighbour);
});

describe("disk", () => {
  test("bytes beyond the limit are refused", async () => {
    const script = "dd if=/dev/zero of=/fill bs=1M count=60 2>&1; stat -c %s /fill";
    const { out } = await shell(script, { limits: { disk: 32 * MiB } });
    expect(out).toContain("No space left on device");
    expect((await shell(script, { limits: { disk: 128 * MiB } })).out).toContain(String(60 * MiB));
  });
  test("so are files without end", async () => {
    const script = `/usr/bin/perl -e 'mkdir "/many"; for (1..30000) { open my $f, ">", "/many/$_" or do { print "$!\\n"; last } } '; ls /many | wc -l`;
    expect((await shell(script, { limits: { disk: 16 * MiB } })).out).toContain("No space left on device");
    expect((await shell(script, { limits: { disk: 1024 * MiB } })).out).toBe("30000\n");
  });
  test("what is written to the host's files counts as well", async () => {
    const { out } = await shell("dd if=/dev/zero of=/etc/hosts bs=1M count=60", { limits: { disk: 32 * MiB } });
    expect(out).toContain("No space left on device");
  });
  test("a container whose disk is full can be stopped and removed", async () => {
    const worker = await host.worker();
    const spec = await host.start({
      process: { args: ["/bin/sh", "-c", "cat /dev/zero >/fill; sleep 100"] },
      limits: { disk: 16 * MiB },
    });
    await expect.poll(() => worker.call("exec", spec.id, { args: ["df", "/"] })).toMatchObject({ stdout: /100%/ });
    await host.remove(spec);
  });
});

test("a flood of output does not fill the host's disk", async () => {
  const worker = await host.worker();
  const spec = await host.start({
    process: {
      args: [
        "/bin/sh",
        "-c",
        "yes 0123456789012345678901234567890123456789012345678901234567890123456789 | head -c 60000000",
      ],
    },
  });
  await worker.exited(spec.id);
  expect(statSync(spec.log).size).toBeLessThan(17 * MiB);
  expect(await worker.call("probe", spec.id)).toMatchObject({ exitCode: 0 });
  await host.remove(spec);
});

test("open files are bounded, and there are no core dumps", async () => {
  const { out } = await shell("ulimit -n; ulimit -c; ulimit -Hn");
  const [soft, core, hard] = out.split("\n");
  expect(Number(soft)).toBeLessThanOrEqual(65_536);
  expect(hard).toBe(soft);
  expect(core).toBe("0");
});

test("one container's inotify instances are not another's", async () => {
  const number = process.arch === "arm64" ? 26 : 294;
  const take = `my $n = 0; while (syscall(${String(number)}, 0) >= 0) { last if ++$n >= 5000 } print "$n\\n"; $| = 1; sleep 100`;
  const worker = await host.worker();
  const greedy = await host.start({
    layers: [host.layer, perl],
    process: { args: ["/usr/bin/perl", "-e", `$| = 1; ${take}`] },
  });
  const few = `my $n = 0; $n++ while $n < 50 && syscall(${String(number)}, 0) >= 0; print $n`;
  await expect.poll(() => readLog(greedy.log)).toBe("256\n");
  const other = await host.start({ layers: [host.layer, perl] });
  expect(await worker.call("exec", other.id, { args: ["/usr/bin/perl", "-e", few] })).toMatchObject({ stdout: "50" });
  await host.remove(greedy);
  await host.remove(other);
});

test("devices: what is not of the usual few can't be used", async () => {
  const { out } = await shell(
    "ls /dev; for d in null zero full random urandom tty; do test -c /dev/$d || echo no $d; done; head -c 4 /dev/urandom | wc -c",
  );
  expect(out.split("\n").filter((name) => name !== "")).toEqual(
    [
      "core",
      "fd",
      "full",
      "mqueue",
      "null",
      "ptmx",
      "pts",
      "random",
      "shm",
      "stderr",
      "stdin",
      "stdout",
      "tty",
      "urandom",
      "zero",
      "4",
    ].filter((name) => name !== "core" || out.includes("core")),
  );
});
