import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { requireDisk } from "../../src/engine/host-disk.ts";
import { build } from "../../src/engine/jobs/build.ts";
import { pull } from "../../src/engine/jobs/pull.ts";
import type { JobHandler } from "../../src/engine/runner.ts";

let dataDir: string;

beforeEach(() => {
  dataDir = mkdtempSync(join(tmpdir(), "berth-host-disk-"));
  execFileSync("mount", ["-t", "tmpfs", "-o", "size=4m", "tmpfs", dataDir]);
});
afterEach(() => {
  execFileSync("umount", [dataDir]);
  rmSync(dataDir, { recursive: true });
});

test("a host that has less of its disk free than it keeps begins no build and no pull, and says what it has", async () => {
  requireDisk(dataDir);
  writeFileSync(join(dataDir, "filled"), Buffer.alloc(3.9 * 2 ** 20));
  const said = {
    code: "disk_full",
    retryable: true,
    message: expect.stringMatching(/has 0 MiB .* and keeps 0 MiB/) as string,
  };
  expect(() => requireDisk(dataDir)).toThrow(expect.objectContaining(said));
  const given: Partial<Parameters<JobHandler>[0]> = {
    payload: {},
    build: { id: "b", request: {} as never, nextSeq: 1 },
  };
  for (const handler of [build, pull]) {
    const attempt = async () =>
      handler(given as never, { config: { dataDir }, connection: {} } as never, AbortSignal.abort(), () => undefined);
    await expect(attempt()).rejects.toMatchObject(said);
  }
});
