import { afterEach, beforeEach, expect, test } from "vitest";
import type { PortMapping } from "../../src/core/port.ts";
import { get, host, outside, TestNetwork } from "../support/network.ts";

let net: TestNetwork;

beforeEach(async () => {
  net = await TestNetwork.create();
  await net.container(0, "prj_a");
  await net.container(1, "prj_b");
  await net.serve(0, "zero", "80");
});
afterEach(async () => {
  await net.end();
});

const port: PortMapping = { id: "prt_x", containerPort: 80, hostPort: 8000, protocol: "tcp", hostAddress: null };
const ruleset = async (): Promise<string> => (await net.host.run("nft", "list", "ruleset")).out;
const reachesNeighbour = async (): Promise<boolean> =>
  (await net.inside(1, ...get(net.addresses(0).ipv4, 80))).out === "zero";

test("another program's flush opens everything, and is noticed and undone", async () => {
  await net.worker.call("publish", port, 0);
  const before = await ruleset();
  await net.host.run("nft", "flush", "ruleset");
  expect(await reachesNeighbour()).toBe(true);
  expect(await net.worker.call("reconcile")).toBe(true);
  expect(await net.worker.call("reconcile")).toBe(false);
  expect(await ruleset()).toBe(before);
  expect(await reachesNeighbour()).toBe(false);
  expect((await net.outside.run(...get(host.public4, 8000))).out).toBe("zero");
});

test("a rule taken out is put back by the next change", async () => {
  await net.host.run("nft", "flush", "chain", "inet", `berth_${net.scope.instance}`, "between");
  expect(await reachesNeighbour()).toBe(true);
  await net.container(2, "prj_c");
  expect(await reachesNeighbour()).toBe(false);
  expect((await net.state()).slots.sort()).toEqual([0, 1, 2]);
});

test("an element taken out does not keep its container from being removed, or the port from being moved", async () => {
  await net.worker.call("publish", port, 0);
  for (const set of ["member4", "port4"])
    await net.host.run("nft", "flush", "set", "inet", `berth_${net.scope.instance}`, set);
  await net.worker.call("publish", { ...port, containerPort: 81 }, 0);
  await net.worker.call("expel", 1);
  await net.worker.call("unpublish", port);
  await net.worker.call("expel", 0);
  expect(await net.state()).toMatchObject({ slots: [], ports: [] });
  expect(await ruleset()).not.toMatch(/10\.88\.|bt[0-9a-f]{6}[0-9a-z]+"/);
});

test("a change of other tables is none of ours, and ours none of theirs", async () => {
  const theirs =
    "table ip filter {\n\tchain INPUT {\n\t\ttype filter hook input priority filter; policy accept;\n\t}\n}\n";
  await net.host.run("nft", theirs);
  expect(await net.worker.call("reconcile")).toBe(false);
  expect(await ruleset()).toContain(theirs);
  await net.worker.call("down");
  expect(await ruleset()).toBe(theirs);
});

test("a project's number is its own as long as one of its containers is in", async () => {
  const groups = async (): Promise<Record<string, string>> =>
    Object.fromEntries(
      [...(await ruleset()).matchAll(/"bt[0-9a-f]{6}(\w)" comment "(\w+)" : 0x0*(\d+)/g)].map(
        ([, slot = "", project = "", group = ""]) => [slot, `${project} ${group}`],
      ),
    );
  await net.container(2, "prj_a");
  expect(await groups()).toEqual({ 0: "prj_a 1", 1: "prj_b 2", 2: "prj_a 1" });
  await net.worker.call("expel", 0);
  await net.container(3, "prj_c");
  expect(await groups()).toEqual({ 1: "prj_b 2", 2: "prj_a 1", 3: "prj_c 3" });
  await net.worker.call("expel", 2);
  // After a restart numbers are known from the kernel.
  await net.worker.kill();
  await net.startWorker();
  await net.worker.call("admit", 0, "prj_d");
  await net.worker.call("admit", 2, "prj_b");
  expect(await groups()).toEqual({ 0: "prj_d 1", 1: "prj_b 2", 2: "prj_b 2", 3: "prj_c 3" });
});

test("what a container may do changes with its membership", async () => {
  await net.serve("outside", "outside", "80");
  const reachesOutside = async (): Promise<boolean> =>
    (await net.inside(1, ...get(outside.public4, 80))).out === "outside";
  expect(await reachesOutside()).toBe(true);
  await net.worker.call("admit", 1, "prj_a", false);
  expect(await reachesOutside()).toBe(false);
  expect(await reachesNeighbour()).toBe(true);
  await net.worker.call("expel", 1);
  expect(await reachesNeighbour()).toBe(false);
});
