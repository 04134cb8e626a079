import { describe, expect, test } from "vitest";
import type { Resources } from "../../src/core/container.ts";
import { BerthError } from "../../src/core/errors.ts";
import { diskReserve } from "../../src/core/host.ts";
import { type HostRoom, isOverfull, overcommit, place } from "../../src/core/placement.ts";
import { checkQuota } from "../../src/core/quota.ts";

const gib = 2 ** 30;
const want = { cpus: 1, memory: gib, pids: 100, disk: gib };

const host = (id: string, more: Partial<HostRoom> = {}): HostRoom => ({
  id,
  name: `name-${id}`,
  state: "ready",
  labels: {},
  cpus: 4,
  memory: 8 * gib,
  disk: 100 * gib,
  used: { cpus: 0, memory: 0, disk: 0, containers: 0 },
  diskFree: null,
  diskReserve: 10 * gib,
  ...more,
});

describe("placement", () => {
  test("takes the host with most memory left, and the same one every time between equals", () => {
    const busy = host("a", { used: { cpus: 1, memory: 4 * gib, disk: 0, containers: 3 } });
    expect(place([busy, host("c"), host("b")], want).id).toBe("b");
  });

  test.each([
    ["is draining", { state: "draining" as const }],
    ["has not been heard of lately", { state: "lost" as const }],
    ["has 4 cores, and 8 are asked", {}, { cpus: 8 }],
    ["has 8.0 GiB of memory, and 9.0 GiB is asked", {}, { memory: 9 * gib }],
    [
      "has 512 MiB of memory left, and 1.0 GiB is asked",
      { used: { cpus: 0, memory: 8 * gib * overcommit.memory - gib / 2, disk: 0, containers: 9 } },
    ],
    ["has 0 MiB of disk left", { used: { cpus: 0, memory: 0, disk: 100 * gib * overcommit.disk, containers: 9 } }],
    ["has 9.0 GiB of its disk free, and keeps 10.0 GiB", { diskFree: 9 * gib }],
    ["has all its 2048 places taken", { used: { cpus: 0, memory: 0, disk: 0, containers: 2_048 } }],
  ] as [string, Partial<HostRoom>, Partial<Resources>?][])("says why not: %s", (reason, more, asked = {}) => {
    expect(() => place([host("a", more)], { ...want, ...asked })).toThrow(`No host has room: name-a ${reason}`);
  });

  test("passes by hosts whose disk is filling up, and keeps less of a small one", () => {
    const full = host("a", { diskFree: 10 * gib - 1 });
    expect(place([full, host("b", { diskFree: 10 * gib })], want).id).toBe("b");
    expect([diskReserve(1_000 * gib), diskReserve(20 * gib)]).toEqual([10 * gib, gib]);
  });

  test("keeps to the host that is named, and to hosts with the labels that are asked", () => {
    const hosts = [host("a", { labels: { zone: "1", disk: "ssd" } }), host("b", { labels: { zone: "2" } }), host("c")];
    expect(place(hosts, want, { host: "c" }).id).toBe("c");
    expect(place(hosts, want, { host: "name-b" }).id).toBe("b");
    expect(place(hosts, want, { hostLabels: { zone: "2" } }).id).toBe("b");
    expect(() => place(hosts, want, { host: "d" })).toThrow("There is no host d.");
    expect(() => place(hosts, want, { hostLabels: { zone: "1", disk: "tape" } })).toThrow(
      "name-a does not have the label disk=tape; name-b does not have the label zone=1; name-c",
    );
    expect(() => place(hosts, want, { host: "b", hostLabels: { zone: "1" } })).toThrow(
      "No host has room: name-b does not have the label zone=1.",
    );
  });

  test("passes by hosts that refuse, and says why the best one did when all that have room do", () => {
    const busy = host("b", { used: { cpus: 0, memory: gib, disk: 0, containers: 1 } });
    const refusal = (id: string) => [id, new BerthError("port_taken", `taken on ${id}`)] as const;
    expect(place([host("a"), busy], want, {}, new Map([refusal("a")])).id).toBe("b");
    expect(() => place([busy, host("a")], want, {}, new Map([refusal("a"), refusal("b")]))).toThrow("taken on a");
    const small = host("c", { memory: gib / 2 });
    expect(() => place([small, busy], want, {}, new Map([refusal("b")]))).toThrow("taken on b");
    expect(() => place([small], want, {}, new Map([refusal("c")]))).toThrow("has 512 MiB of memory");
  });

  test("says that no host has joined", () => {
    expect(() => place([], want)).toThrow("No host has joined yet");
  });

  test("an overfull host is noticed", () => {
    expect(
      isOverfull(host("a", { used: { cpus: 0, memory: 8 * gib * overcommit.memory, disk: 0, containers: 1 } })),
    ).toBe(false);
    expect(
      isOverfull(host("a", { used: { cpus: 0, memory: 8 * gib * overcommit.memory + 1, disk: 0, containers: 1 } })),
    ).toBe(true);
  });
});

describe("quota", () => {
  const none = { containers: 0, cpus: 0, memory: 0, disk: 0, ports: 0 };
  test("allows up to the limit and names what would pass it", () => {
    expect(() => checkQuota({ ...none, containers: 2 }, { ...none, containers: 1 }, { containers: 1 })).not.toThrow();
    expect(() => checkQuota({ ...none, containers: 2 }, { ...none, containers: 2 }, { containers: 1 })).toThrow(
      "The project may have 2 containers; it has 2, and 1 more are asked.",
    );
  });
  test("what is over a lowered limit may go on, as long as nothing more is asked of it", () => {
    expect(() =>
      checkQuota({ ...none, containers: 9, ports: 1 }, { ...none, ports: 5 }, { containers: 1, ports: 0 }),
    ).not.toThrow();
  });
});
