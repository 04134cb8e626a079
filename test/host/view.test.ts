import { spawnSync } from "node:child_process";
import { chmodSync, existsSync, mkdirSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { apiUser, asUser, findUser } from "../../src/supervisor/users.ts";
import { closeView, openView } from "../../src/supervisor/view.ts";
import { Owned } from "../support/ownership.ts";

const owned = Owned.directory("berth-view-test-");
const base = owned.footprint.directory;
chmodSync(base, 0o711);
const [closed, runDir] = [join(base, "home"), join(base, "run")];
const clone = join(closed, "clone");
mkdirSync(clone, { recursive: true });
mkdirSync(runDir, { mode: 0o711 });
writeFileSync(join(clone, "package.json"), "{}\n");

afterAll(async () => {
  closeView(runDir);
  await owned.remove();
});

/** Reads, or tries to write, as the API's user. */
function asApi(enter: readonly string[], ...argv: string[]): { status: number | null; out: string } {
  const [program = "", ...args] = [...enter, ...asUser(findUser(apiUser)), ...argv];
  const { status, stdout } = spawnSync(program, args, { encoding: "utf8" });
  return { status, out: stdout };
}

test("a clone that anybody reaches is used where it is", () => {
  chmodSync(closed, 0o711);
  expect(openView(clone, runDir)).toEqual({ root: clone, enter: [] });
});

test("a clone below a closed directory is shown to those who enter the view, read-only, and to nobody else", () => {
  chmodSync(closed, 0o700);
  expect(asApi([], "/usr/bin/cat", join(clone, "package.json")).status).not.toBe(0);
  const view = openView(clone, runDir);
  expect(asApi(view.enter, "/usr/bin/cat", join(view.root, "package.json"))).toEqual({ status: 0, out: "{}\n" });
  expect(readdirSync(view.root)).toEqual([]);
  chmodSync(clone, 0o777);
  expect(asApi(view.enter, "/usr/bin/touch", join(view.root, "mine")).status).not.toBe(0);
  expect(existsSync(join(clone, "mine"))).toBe(false);
  chmodSync(clone, 0o755);
  // Opened again, as by the next start.
  const again = openView(clone, runDir);
  expect(asApi(again.enter, "/usr/bin/cat", join(again.root, "package.json")).status).toBe(0);
  closeView(runDir);
  rmSync(join(runDir, "view"), { recursive: true });
});

test("files that are closed themselves are refused with the remedy", () => {
  chmodSync(join(clone, "package.json"), 0o600);
  expect(() => openView(clone, runDir)).toThrow(`chmod -R go+rX ${clone}`);
});
