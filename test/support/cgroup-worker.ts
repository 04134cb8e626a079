/** Takes a control group through its life with the code under test, and prints what it saw as one JSON line. */
import { spawn } from "node:child_process";
import { existsSync, mkdirSync, writeFileSync } from "node:fs";
import { Cgroups } from "../../src/isolation/apply/cgroup.ts";

const parent = process.argv[2] ?? "";
const path = `${parent}/prj_a/ctr_b`;
const cgroups = new Cgroups();
const hierarchy = cgroups.version === 2 ? "" : "/freezer";
const directory = `/sys/fs/cgroup${hierarchy}${path}`;
mkdirSync(`${directory}/inner`, { recursive: true });

const children = [spawn("sleep", ["1000"]), spawn("sleep", ["1000"])];
const ends = children.map((child) => new Promise((end) => child.once("exit", (_code, signal) => end(signal))));
const pids = children.map((child) => child.pid ?? 0);
writeFileSync(`${directory}/cgroup.procs`, String(pids[0]));
writeFileSync(`${directory}/inner/cgroup.procs`, String(pids[1]));

const listed = cgroups.list(parent);
const found = cgroups.processes(path).toSorted((a, b) => a - b);
await cgroups.freeze(path, true);
await cgroups.freeze(path, false);
await cgroups.freeze(path, true);
await cgroups.remove(path);
cgroups.removeParent(parent);
await cgroups.remove(path);
console.log(
  JSON.stringify({
    version: cgroups.version,
    listed,
    allFound: JSON.stringify(found) === JSON.stringify(pids.toSorted((a, b) => a - b)),
    oomKilled: cgroups.oomKilled(path),
    signals: await Promise.all(ends),
    left: existsSync(`/sys/fs/cgroup${hierarchy}${parent}`),
  }),
);
