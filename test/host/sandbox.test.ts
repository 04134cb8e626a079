import { readFileSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { SandboxSpec } from "../../src/isolation/sandbox-spec.ts";
import { leftovers } from "../support/leftovers.ts";
import { readLog, TestHost } from "../support/sandboxes.ts";

describe.each(["crun", "runc"] as const)("sandboxes made by %s", (runtime) => {
  let host: TestHost;
  beforeAll(async () => {
    host = await TestHost.create(runtime);
  });
  afterAll(() => host.destroy());

  test("a process runs in its image; output and exit code are kept", async () => {
    const { out, end } = await host.shell("echo hello; echo oops >&2; exit 3");
    expect(out.split("\n").toSorted()).toEqual(["", "hello", "oops"]);
    expect(end).toMatchObject({ state: "exited", exitCode: 3, oomKilled: false });
  });

  test("a process has its environment, directory, host name and address", async () => {
    const { out } = await host.shell(
      "echo $GREETING $HOME; pwd; hostname; cat /etc/hostname; grep web /etc/hosts; ip -4 addr show eth0",
      {
        hostname: "web",
        process: { env: ["PATH=/bin", "GREETING=hello"], cwd: "/tmp" },
      },
    );
    const [env, cwd, name, file, hosts] = out.split("\n");
    expect([env, cwd, name, file]).toEqual(["hello /root", "/tmp", "web", "web"]);
    expect(out).toContain(`inet ${hosts?.split("\t")[0] ?? "?"}/32`);
  });

  test.each([
    ["", "uid=0(root) gid=0(root) groups=0(root)", "/root"],
    ["app", "uid=1000(app) gid=1000(app) groups=1000(app),1001(extra)", "/home/app"],
    ["app:extra", "uid=1000(app) gid=1001(extra) groups=1001(extra)", "/home/app"],
    ["1234", "uid=1234 gid=0(root) groups=0(root)", "/"],
    ["1234:4321", "uid=1234 gid=4321 groups=4321", "/"],
    ["65535:65535", "uid=65535 gid=65535 groups=65535", "/"],
  ])("the user %j is resolved by the image's own files", async (user, id, home) => {
    const { out } = await host.shell("id; echo $HOME", { process: { user } });
    // An ungrouped process shows its primary group only where it is among its groups.
    expect(out.split("\n")[0]?.split(" ").slice(0, 2)).toEqual(id.split(" ").slice(0, 2));
    expect(out.split("\n")[1]).toBe(home);
    if (user === "app") expect(out).toContain("1001(extra)");
  });

  test.each([
    "nobody",
    "app:nobody",
    "far",
    "65536",
    "0:70000",
    "4294967296",
    "-1",
    "99999999999999999999",
    "../etc",
    "app:",
  ])("the user %j is refused, and nothing is left", async (user) => {
    if (user === "app:") {
      // An empty group is none, as Docker has it.
      await expect(host.shell("true", { process: { user } })).resolves.toMatchObject({ end: { exitCode: 0 } });
      return;
    }
    await expect(host.shell("true", { process: { user } })).rejects.toMatchObject({ code: "invalid_user" });
  });

  test.each([
    [["/bin/absent"], "command_not_found"],
    [["absent"], "command_not_found"],
    [["/bin/absent/deeper"], "command_not_found"],
    [["/etc/passwd"], "command_not_executable"],
    [["/etc"], "command_not_executable"],
  ])("the command %j is refused as %s", async (args, code) => {
    await expect(host.run(args)).rejects.toMatchObject({ code });
  });

  test("a signal ends the process, and its number is in the exit code", async () => {
    const worker = await host.worker();
    const { id, slot } = await host.start();
    expect(await worker.call("probe", id)).toMatchObject({ state: "running" });
    await worker.call("signal", id, 9);
    await worker.exited(id);
    expect(await worker.call("probe", id)).toMatchObject({ state: "exited", exitCode: 137, oomKilled: false });
    await worker.call("remove", id, slot);
    expect(await worker.call("probe", id)).toEqual({ state: "absent" });
    await worker.call("freeSlot", slot);
  });

  test("a restart finds the disk and goes on with the log; a removal takes both", async () => {
    const worker = await host.worker();
    const spec = await host.start({ process: { args: ["/bin/sh", "-c", "cat /kept 2>&1; echo one | tee -a /kept"] } });
    await worker.exited(spec.id);
    await worker.call("release", spec.id);
    expect(await worker.call("probe", spec.id)).toEqual({ state: "absent" });
    await worker.call("start", spec, []);
    await expect.poll(() => worker.call("probe", spec.id)).toMatchObject({ state: "exited" });
    expect(readLog(spec.log)).toBe("cat: can't open '/kept': No such file or directory\none\none\none\n");
    await worker.call("remove", spec.id, spec.slot);
    await worker.call("start", spec, []);
    await expect.poll(() => worker.call("probe", spec.id)).toMatchObject({ state: "exited" });
    expect(readLog(spec.log)).toBe("cat: can't open '/kept': No such file or directory\none\n");
    await host.remove(spec);
  });

  test("a read-only root filesystem can't be written, while /dev/shm can", async () => {
    const { out } = await host.shell("touch /x /etc/hosts 2>&1; echo $?; touch /dev/shm/x; echo $?", {
      readOnlyRootfs: true,
    });
    expect(out).toContain("Read-only file system");
    expect(out.split("\n").slice(-3)).toEqual(["1", "0", ""]);
  });

  test("the working directory is made when the image lacks it", async () => {
    const { out } = await host.shell("pwd", { process: { cwd: "/srv/app" } });
    expect(out).toBe("/srv/app\n");
  });

  test("a terminal and an open input are given when asked for", async () => {
    const { out } = await host.shell("test -t 0 && test -t 1 && echo tty; stat -c %F /dev/console", {
      process: { tty: true },
    });
    expect(out.replaceAll("\r", "")).toBe("tty\ncharacter special file\n");
    const worker = await host.worker();
    const spec = await host.start({ process: { args: ["/bin/cat"], stdin: true } });
    expect(await worker.call("probe", spec.id)).toMatchObject({ state: "running" });
    await host.remove(spec);
  });

  describe("exec", () => {
    let spec: SandboxSpec;
    beforeAll(async () => {
      spec = await host.start({ process: { env: ["PATH=/bin", "KEPT=yes"], cwd: "/tmp" } });
    });
    afterAll(() => host.remove(spec));
    const exec = async (request: object) => (await host.worker()).call("exec", spec.id, request);

    test("runs a program with the container's environment and its own", async () => {
      expect(
        await exec({ args: ["sh", "-c", "echo $KEPT $MORE; pwd; echo bad >&2; exit 7"], env: ["MORE=a=b"] }),
      ).toEqual({
        exitCode: 7,
        stdout: "yes a=b\n/tmp\n",
        stderr: "bad\n",
        truncated: false,
        timedOut: false,
      });
    });
    test("is under the same limits, filter and capabilities", async () => {
      const script = "grep -E 'CapEff|CapBnd|NoNewPrivs|Seccomp:' /proc/self/status; cat /proc/self/cgroup; ps";
      const inside = (await exec({ args: ["sh", "-c", script] })) as { stdout: string };
      expect(inside.stdout).toMatch(/CapEff:\t00000000000004fb\nCapBnd:\t00000000000004fb\n/);
      expect(inside.stdout).toMatch(/NoNewPrivs:\t1\nSeccomp:\t2\n/);
      expect(inside.stdout).not.toContain("berth-");
    });
    test("takes input, another user and another directory", async () => {
      expect(
        await exec({ args: ["sh", "-c", "cat; id -u; pwd"], stdin: "typed\n", user: "app", cwd: "/" }),
      ).toMatchObject({
        stdout: "typed\n1000\n/\n",
        exitCode: 0,
      });
      await expect(exec({ args: ["id"], user: "nobody" })).rejects.toMatchObject({ code: "invalid_user" });
    });
    test("says when there is no such program", async () => {
      await expect(exec({ args: ["absent"] })).rejects.toMatchObject({ code: "command_not_found" });
      await expect(exec({ args: ["/etc/passwd"] })).rejects.toMatchObject({ code: "command_not_executable" });
    });
    // runc copies output until every holder of the pipes has ended.
    test.skipIf(runtime === "runc")("ends although a child lingers, and after its time", async () => {
      const started = performance.now();
      expect(await exec({ args: ["sh", "-c", "sleep 1000 & echo done"] })).toMatchObject({
        stdout: "done\n",
        exitCode: 0,
      });
      expect(await exec({ args: ["sleep", "1000"], timeoutSeconds: 0.3 })).toMatchObject({
        timedOut: true,
        exitCode: 137,
      });
      expect(performance.now() - started).toBeLessThan(10_000);
    });
    test.each([0, 1, 3, 6, 10])("that is given up after %i ms ends, whatever it had come to", async (after) => {
      const worker = await host.worker();
      const started = performance.now();
      const seconds = String(2000 + after);
      const request = { args: ["sleep", seconds], timeoutSeconds: 60 };
      await worker.call("execAborted", spec.id, request, after).catch((error: unknown) => {
        expect(error).toMatchObject({ code: "cancelled" });
      });
      expect(performance.now() - started).toBeLessThan(20_000);
      const { stdout } = await worker.call<{ stdout: string }>("exec", spec.id, { args: ["ps", "-o", "args"] });
      expect(stdout).not.toContain(`sleep ${seconds}`);
    });
    test("while the container is removed says that it does not run", async () => {
      const gone = await host.start();
      const worker = await host.worker();
      const ends = await worker.call<string[]>("execWhileRemoved", gone, { args: ["true"] });
      expect(ends).toContain("invalid_state");
      // An answer, or that it does not run: nothing else.
      expect(ends.filter((end) => end !== "ended" && end !== "invalid_state")).toEqual([]);
      await worker.call("freeSlot", gone.slot);
    });
    test("keeps a bounded part of its output", async () => {
      const result = (await exec({ args: ["sh", "-c", "yes | head -c 5000000"] })) as {
        stdout: string;
        truncated: boolean;
      };
      expect(result.stdout.length).toBe(1 << 20);
      expect(result.truncated).toBe(true);
    });
  });

  test("a paused container stands still and goes on", async () => {
    const worker = await host.worker();
    const spec = await host.start({
      process: { args: ["/bin/sh", "-c", "while true; do echo tick; sleep 0.05; done"] },
    });
    await worker.call("pause", spec.id);
    const before = readLog(spec.log).length;
    const cpu = readFileSync(`/proc/${String(spec.pid)}/stat`, "utf8");
    await worker.call("addressOf", spec.slot);
    expect(readFileSync(`/proc/${String(spec.pid)}/stat`, "utf8")).toBe(cpu);
    await worker.call("resume", spec.id);
    await expect.poll(() => readLog(spec.log).length).toBeGreaterThan(before);
    await worker.call("pause", spec.id);
    await host.remove(spec);
  });

  test("after all this nothing is left", async () => {
    await host.stop();
    expect(leftovers(host)).toEqual([]);
  });
});
