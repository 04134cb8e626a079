import { execFile } from "node:child_process";
import { cpSync, mkdtempSync, readdirSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { promisify } from "node:util";
import { afterAll, expect, test } from "vitest";

const clone = dirname(dirname(import.meta.dirname));
const copy = mkdtempSync(join(tmpdir(), "berth-bundle-"));
afterAll(() => rmSync(copy, { recursive: true, force: true }));

test("starts beside each other bundle the same sources, and one of the bundles stays", async () => {
  for (const name of ["infra", "src", "package.json", "package-lock.json"])
    cpSync(join(clone, name), join(copy, name), { recursive: true });
  symlinkSync(join(clone, "node_modules"), join(copy, "node_modules"));
  const script = `const { bundle, bundleDirectory, canBundle } = await import("./infra/setup/bundle.mjs");
    canBundle();
    const failure = await bundle(bundleDirectory(), process.execPath);
    if (failure !== null) throw new Error(failure);`;
  const start = () => promisify(execFile)(process.execPath, ["--input-type=module", "-e", script], { cwd: copy });
  await Promise.all([start(), start(), start()]);
  const [bundle = "", ...others] = readdirSync(join(copy, ".cache/berth"));
  expect(others).toEqual([]);
  expect(readdirSync(join(copy, ".cache/berth", bundle))).toEqual(
    expect.arrayContaining(["api.mjs", "main.mjs", "worker.mjs"]),
  );
}, 60_000);
