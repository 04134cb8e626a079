import { spawnSync } from "node:child_process";
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";

// The script on a machine whose /etc and /run are copies that nobody else sees. What systemd would do, a script of the
// test's does: it starts nothing, and stands for a worker that has joined.
const clone = dirname(dirname(import.meta.dirname));
let dir: string;

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "berth-install-"));
  for (const name of ["bin", "layers"]) mkdirSync(join(dir, name));
  writeFileSync(
    join(dir, "bin/systemctl"),
    `#!/bin/sh\necho "$*" >> ${dir}/asked\ncase $1 in restart) mkdir -p ${dir}/data/worker; touch ${dir}/data/worker/host.json;; esac\n`,
  );
  chmodSync(join(dir, "bin/systemctl"), 0o755);
});
afterEach(() => {
  rmSync(dir, { recursive: true, force: true });
});

/** Runs it; the settings and the unit that it has left are in `dir`, and are there again at the next run. */
function install(env: Record<string, string>, systemd = false): { code: number | null; said: string } {
  const script = `set -e
    mount -t tmpfs layers ${dir}/layers
    for name in etc run; do
      mkdir ${dir}/layers/$name ${dir}/layers/$name.work
      mount -t overlay overlay -o lowerdir=/$name,upperdir=${dir}/layers/$name,workdir=${dir}/layers/$name.work /$name
    done
    rm -rf /run/systemd/system /etc/berth
    if [ -d ${dir}/berth ]; then cp -a ${dir}/berth /etc/berth; fi
    ${systemd ? "mkdir -p /run/systemd/system" : ""}
    code=0
    ${clone}/infra/install-worker.sh || code=$?
    rm -rf ${dir}/berth; cp -a /etc/berth ${dir}/berth
    cp /etc/systemd/system/berth-worker.service ${dir}/unit 2>/dev/null || true
    exit $code`;
  const { status, stdout, stderr } = spawnSync("unshare", ["--mount", "sh", "-c", script], {
    env: { PATH: `${join(dir, "bin")}:/usr/sbin:/usr/bin:/sbin:/bin`, BERTH_DATA_DIR: join(dir, "data"), ...env },
    encoding: "utf8",
  });
  return { code: status, said: `${stdout}${stderr}`.trim() };
}

const settings = () => readFileSync(join(dir, "berth/worker.env"), "utf8").trim().split("\n").sort();
const needed = {
  BERTH_API_URL: "tls://198.18.0.1:7071",
  BERTH_HOST_ADDRESS: "198.18.0.2",
  BERTH_DATABASE_URL: "postgres://owner:p=w%20d@198.18.0.1/berth?sslmode=require",
};

test("it says which setting is missing, before it changes anything else", () => {
  for (const name of ["BERTH_API_URL", "BERTH_HOST_ADDRESS", "BERTH_JOIN_TOKEN"]) {
    rmSync(join(dir, "berth"), { recursive: true, force: true });
    const { code, said } = install({ ...needed, BERTH_JOIN_TOKEN: "jtk_x.y", [name]: "" });
    expect(code).toBe(1);
    expect(said).toContain(`install-worker: ${name} is needed`);
  }
  expect(existsSync(join(dir, "unit"))).toBe(false);
});

test("it keeps the settings for root alone, changes what is given, and can be run again", () => {
  expect(install({ ...needed, BERTH_JOIN_TOKEN: "jtk_x.y" })).toMatchObject({ code: 0 });
  const first = settings();
  expect(first).toContain(`BERTH_DATABASE_URL=${needed.BERTH_DATABASE_URL}`);
  expect(
    spawnSync("stat", ["-c", "%a", join(dir, "berth"), join(dir, "berth/worker.env")], { encoding: "utf8" }).stdout,
  ).toBe("700\n600\n");
  const unit = readFileSync(join(dir, "unit"), "utf8");
  expect(unit).toContain(`ExecStart=${clone}/node_modules/.bin/node ${clone}/src/main.ts`);
  expect(install({})).toMatchObject({ code: 0 });
  expect(settings()).toEqual(first);
  expect(install({ BERTH_HOST_LABELS: "zone=a,disk=ssd", BERTH_HOST_ADDRESS: "198.18.0.3" })).toMatchObject({
    code: 0,
  });
  expect(settings()).toEqual(
    [
      ...first.filter((line) => !line.startsWith("BERTH_HOST_ADDRESS=")),
      "BERTH_HOST_ADDRESS=198.18.0.3",
      "BERTH_HOST_LABELS=zone=a,disk=ssd",
    ].sort(),
  );
  expect(readFileSync(join(dir, "unit"), "utf8")).toBe(unit);
});

test("under systemd it starts the worker, waits until it has joined, and then keeps no token", () => {
  const { code, said } = install({ ...needed, BERTH_JOIN_TOKEN: "jtk_x.y" }, true);
  expect([code, said.split("\n").at(-1)]).toEqual([0, "berth-worker runs; systemctl status berth-worker"]);
  expect(readFileSync(join(dir, "asked"), "utf8").trim().split("\n")).toEqual([
    "daemon-reload",
    "enable --quiet berth-worker.service",
    "restart berth-worker.service",
  ]);
  expect(settings().filter((line) => line.includes("JOIN_TOKEN"))).toEqual([]);
  expect(install({}, true).code).toBe(0);
});
