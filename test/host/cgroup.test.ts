import { execFile } from "node:child_process";
import { randomBytes } from "node:crypto";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import { expect, test } from "vitest";

const script = join(import.meta.dirname, "../support/cgroup-worker.ts");
const unified = "/sys/fs/cgroup/unified/cgroup.procs";

/** On a host with both versions, version 2 is seen as on one that has nothing else. */
const versions = existsSync("/sys/fs/cgroup/cgroup.controllers") ? [2] : existsSync(unified) ? [1, 2] : [1];

test.each(versions)("a group of version %i is found, frozen, and removed with all its processes", async (version) => {
  const enter =
    version === 2 && existsSync(unified)
      ? 'mount --bind /sys/fs/cgroup/unified /sys/fs/cgroup && exec "$@"'
      : 'exec "$@"';
  const parent = `/berth-test-${randomBytes(4).toString("hex")}`;
  const args = ["--mount", "sh", "-c", enter, "sh", process.execPath, script, parent];
  const { stdout } = await promisify(execFile)("unshare", args, { timeout: 30_000 });
  expect(JSON.parse(stdout)).toMatchObject({
    version,
    listed: ["prj_a/ctr_b"],
    allFound: true,
    oomKilled: false,
    signals: ["SIGKILL", "SIGKILL"],
    left: false,
  });
});
