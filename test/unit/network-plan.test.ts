import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { addressBytes } from "../../src/isolation/apply/rtnetlink.ts";
import {
  containerElements,
  elementCommand,
  fixedCommands,
  portElements,
  tableText,
} from "../../src/isolation/plan/firewall.ts";
import { usableSlots } from "../../src/isolation/plan/layout.ts";
import {
  slotNetwork,
  slotOfAddress,
  slotOfVeth,
  subnet4,
  subnet6,
  vethPrefix,
} from "../../src/isolation/plan/network.ts";

const scope = { instance: "ab12cd", block: 3 };
const scopes = fc.record({
  instance: fc.stringMatching(/^[0-9a-f]{6}$/),
  block: fc.integer({ min: 0, max: 30 }),
});
const slots = fc.integer({ min: 0, max: usableSlots - 1 });

describe("names and addresses", () => {
  test("are what the documentation says", () => {
    expect(slotNetwork(scope, 0)).toEqual({
      veth: "btab12cd0",
      index: 0x0b_00_18_01,
      ipv4: "10.88.24.1",
      ipv6: "fdab:12cd:be72:3::1:1801",
      hostMac: "02:bf:0a:58:18:01",
      mac: "02:be:0a:58:18:01",
    });
    expect(subnet4(scope)).toEqual({ address: "10.88.24.0", bits: 21 });
    expect(subnet6(scope)).toEqual({ address: "fdab:12cd:be72:3::", bits: 64 });
  });

  test("lead back to the slot, and to no other instance's", () => {
    fc.assert(
      fc.property(scopes, slots, (one, slot) => {
        const { veth, ipv4, ipv6 } = slotNetwork(one, slot);
        expect(veth.length).toBeLessThanOrEqual(15);
        expect(slotOfVeth(one, veth)).toBe(slot);
        expect(slotOfAddress(one, ipv4)).toBe(slot);
        expect(slotOfAddress(one, ipv6)).toBe(slot);
        const other = { instance: one.instance === "000000" ? "000001" : "000000", block: (one.block + 1) % 31 };
        expect(slotOfVeth(other, veth)).toBeNull();
        expect(slotOfAddress(other, ipv4)).toBeNull();
        expect(slotOfAddress(other, ipv6)).toBeNull();
      }),
    );
  });

  test("are inside of the block's subnet", () => {
    fc.assert(
      fc.property(scopes, slots, (one, slot) => {
        const address = addressBytes(slotNetwork(one, slot).ipv4).readUInt32BE();
        const first = addressBytes(subnet4(one).address).readUInt32BE();
        expect(address).toBeGreaterThan(first);
        expect(address).toBeLessThan(first + 2048);
      }),
    );
  });

  test.each(["btab12cd", "btab12cd00", "btab12cd-1", "btab12cdzzzz", "eth0", "btab12cdzzz"])(
    "%s is no slot's",
    (name) => {
      expect(slotOfVeth(scope, name)).toBeNull();
    },
  );

  test("outside of the range there is none", () => {
    for (const slot of [-1, usableSlots, 1.5]) expect(() => slotNetwork(scope, slot)).toThrow(RangeError);
    expect(() => slotNetwork({ ...scope, block: 31 }, 0)).toThrow(RangeError);
  });
});

test("addresses become bytes", () => {
  expect([...addressBytes("10.88.0.1")]).toEqual([10, 88, 0, 1]);
  expect(addressBytes("fe80::1").toString("hex")).toBe("fe800000000000000000000000000001");
  expect(addressBytes("::").toString("hex")).toBe("0".repeat(32));
  expect(addressBytes("fd00:1:2:3:4:5:6:7").toString("hex")).toBe("fd000001000200030004000500060007");
});

describe("the table", () => {
  test("is replaced in one piece, and touches no other", () => {
    const text = tableText(scope);
    expect(text.match(/^(?:add|delete)? ?table .*$/gm)).toEqual([
      "add table inet berth_ab12cd",
      "delete table inet berth_ab12cd",
      "table inet berth_ab12cd {",
    ]);
    expect(text).not.toMatch(/flush/);
    // Every rule that is not about local addresses is about our own links only.
    expect(text.match(/"bt[^"]*"/g)?.every((name) => name === `"${vethPrefix(scope)}*"`)).toBe(true);
  });

  test("a container is the same number of elements at any time", () => {
    const elements = containerElements(scope, 5, { group: 7, project: "prj_x", egress: true });
    expect(elements.map((element) => elementCommand(scope, element))).toEqual([
      "add element inet berth_ab12cd source4 { btab12cd5 . 10.88.24.6 }",
      "add element inet berth_ab12cd source6 { btab12cd5 . fdab:12cd:be72:3::1:1806 }",
      'add element inet berth_ab12cd group { btab12cd5 comment "prj_x" : 7 }',
      "add element inet berth_ab12cd member4 { 7 . 10.88.24.6 }",
      "add element inet berth_ab12cd member6 { 7 . fdab:12cd:be72:3::1:1806 }",
      "add element inet berth_ab12cd self { btab12cd5 . btab12cd5 }",
      "add element inet berth_ab12cd egress { btab12cd5 }",
    ]);
  });

  test("a port is on all addresses of both families, or on one", () => {
    const commands = (hostAddress: string | null): string[] =>
      portElements(scope, { hostAddress, protocol: "udp", hostPort: 53 }, { slot: 0, containerPort: 5353 }).map(
        (element) => elementCommand(scope, element).slice("add element inet berth_ab12cd ".length),
      );
    expect(commands(null)).toEqual([
      "port4 { udp . 53 : 10.88.24.1 . 5353 }",
      "port6 { udp . 53 : fdab:12cd:be72:3::1:1801 . 5353 }",
    ]);
    expect(commands("127.0.0.1")).toEqual(["port4_at { 127.0.0.1 . udp . 53 : 10.88.24.1 . 5353 }"]);
    expect(commands("2001:db8::1")).toEqual(["port6_at { 2001:db8::1 . udp . 53 : fdab:12cd:be72:3::1:1801 . 5353 }"]);
  });

  test("name servers and allowed networks come with the table", () => {
    expect(fixedCommands(scope, ["10.0.0.2", "fd00::53"], ["10.1.0.0/16", "fd12::/48"])).toEqual([
      "add element inet berth_ab12cd resolver4 { 10.0.0.2 }",
      "add element inet berth_ab12cd resolver6 { fd00::53 }",
      "add element inet berth_ab12cd allowed4 { 10.1.0.0/16 }",
      "add element inet berth_ab12cd allowed6 { fd12::/48 }",
    ]);
  });
});
