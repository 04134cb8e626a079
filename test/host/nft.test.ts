import { afterEach, beforeEach, expect, test } from "vitest";
import type { PortMapping } from "../../src/core/port.ts";
import type { Element } from "../../src/isolation/plan/firewall.ts";
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
/** A number that another table gets, also when it takes the place and name of this one. */
const tableHandle = async (): Promise<number> => {
  const { out } = await net.host.run("nft", "-j", "list", "tables", "inet");
  const handle = Number(/"name": "berth_\w+", "handle": (\d+)/.exec(out)?.[1]);
  expect(handle).toBeGreaterThan(0);
  return handle;
};
const filledSets = async (): Promise<string[]> =>
  [...(await ruleset()).matchAll(/(?:set|map) (\w+) \{[^}]*elements = /g)].map(([, name = ""]) => name);
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

test("a change makes the elements that the table's text makes, in each set, and takes them out again", async () => {
  const first = await tableHandle();
  const fixed = ["closed4", "closed6"];
  const ports: PortMapping[] = [port, { ...port, protocol: "udp", hostAddress: "127.0.0.1", hostPort: 65_535 }];
  ports.push({ ...port, hostAddress: host.public6, hostPort: 1, containerPort: 65_535 });
  // Each leads to one container, and is then switched to the other.
  for (const slot of [0, 1]) for (const mapping of ports) await net.worker.call("publish", mapping, slot);
  const made = ["source4", "source6", "group", "member4", "member6", "egress", "self"];
  expect(await filledSets()).toEqual([...made, "port4", "port6", "port4_at", "port6_at", ...fixed]);
  const byChanges = await ruleset();
  expect(await tableHandle()).toBe(first);

  await net.host.run("nft", "flush", "ruleset");
  expect(await net.worker.call("reconcile")).toBe(true);
  const second = await tableHandle();
  expect(second).not.toBe(first);
  expect(await ruleset()).toBe(byChanges);

  for (const mapping of ports) await net.worker.call("unpublish", mapping);
  for (const slot of [0, 1]) await net.worker.call("expel", slot);
  expect(await filledSets()).toEqual(fixed);
  expect(await tableHandle()).toBe(second);
});

test("a change is done as a whole, and only when nobody changed anything before it", async () => {
  const elementsOf = (slot: number): Element[] => {
    const { veth, ipv4 } = net.addresses(slot);
    return [
      { set: "source4", key: [{ link: veth }, { address: ipv4 }] },
      { set: "egress", key: [{ link: veth }] },
    ];
  };
  const change = (generation: number, remove: Element[], add: Element[]): Promise<number | null> =>
    net.worker.call("change", generation, remove, add);
  const before = await ruleset();
  const generation = await net.worker.call<number>("generation");
  const [source, egress] = elementsOf(5) as [Element, Element];
  const there = elementsOf(0);

  expect(await change(generation - 1, [], [source, egress])).toBeNull();
  await expect(change(generation, [egress], [source])).rejects.toThrow(/delete an element of egress.*ENOENT/);
  await expect(change(generation, [], [source, ...there])).rejects.toThrow(/add an element of source4.*EEXIST/);
  expect(await ruleset()).toBe(before);

  expect(await change(generation, [], [source, egress])).toBe(generation + 1);
  expect(await net.worker.call("generation")).toBe(generation + 1);
  expect(await ruleset()).toContain(net.addresses(5).ipv4);
  expect(await change(generation + 1, [source, egress], [])).toBe(generation + 2);
  expect(await ruleset()).toBe(before);
});

test("an element that another program put in is ours after the change that would add it", async () => {
  const first = await tableHandle();
  const { veth, ipv4 } = net.addresses(2);
  const added = `add element inet berth_${net.scope.instance} group { ${veth} comment "prj_b" : 2 }`;
  await net.host.run("nft", added);
  await net.container(2, "prj_a");
  expect(await tableHandle()).not.toBe(first);
  expect(await ruleset()).toContain(`"${veth}" comment "prj_a" : 0x00000001`);
  expect(await ruleset()).toContain(`0x00000001 . ${ipv4}`);
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
  const ours = await tableHandle();
  await net.host.run("nft", "add", "rule", "ip", "filter", "INPUT", "accept");
  await net.host.run("nft", "flush", "chain", "ip", "filter", "INPUT");
  await net.container(2, "prj_c");
  expect(await tableHandle()).toBe(ours);
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
  const table = await tableHandle();
  await net.worker.call("admit", 1, "prj_a", false);
  expect(await tableHandle()).toBe(table);
  expect(await reachesOutside()).toBe(false);
  expect(await reachesNeighbour()).toBe(true);
  await net.worker.call("expel", 1);
  expect(await reachesNeighbour()).toBe(false);
});
