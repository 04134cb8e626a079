import { spawnSync } from "node:child_process";
import { chmodSync, mkdirSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { Instance, processes } from "../support/berth.ts";
import { Owned } from "../support/ownership.ts";

// The clone below a directory that only root passes, as /root is: a bind mount of this one there.
const owned = Owned.directory("berth-home-");
const home = owned.footprint.directory;
const clone = join(home, "berth");
let berth: Instance;

function run(program: string, ...args: string[]): void {
  const { status, stderr } = spawnSync(program, args, { encoding: "utf8" });
  if (status !== 0) throw new Error(`${program}: ${stderr}`);
}

beforeAll(() => {
  chmodSync(home, 0o700);
  mkdirSync(clone);
  run("/usr/bin/mount", "--bind", dirname(dirname(import.meta.dirname)), clone);
  berth = Instance.create({}, clone);
});
afterAll(async () => {
  await berth.destroy();
  run("/usr/bin/umount", clone);
  await owned.remove();
});

test("API and database run from a clone that their users can't reach; only they see it where it is shown", async () => {
  const supervisor = berth.start();
  await supervisor.until(/^Ready/m);
  const answer = await fetch(`${berth.url}/v1/projects`, { headers: { authorization: `Bearer ${berth.token}` } });
  expect(answer.status).toBe(200);
  const shown = join(berth.config.runDir, "view/clone");
  const children = processes().filter(({ parent }) => parent === supervisor.child.pid);
  const seeing = children.filter(({ command }) => command.includes(shown)).map(({ pid }) => pid);
  expect(seeing).toHaveLength(2);
  for (const { pid } of children) {
    const sees = readFileSync(`/proc/${String(pid)}/mountinfo`, "utf8").includes(shown);
    expect(sees).toBe(seeing.includes(pid));
  }
  expect(readFileSync("/proc/self/mountinfo", "utf8")).not.toContain(shown);
  expect(await supervisor.stop()).toBe(0);
});
