import { expect, it } from "vitest";
import { Inbox } from "../../src/engine/inbox.ts";

/** An inbox whose reads are answered by the test, and what it woke. */
function inbox() {
  const reads: ((rows: { id: string; rev: number }[]) => void)[] = [];
  const woken: [string, number | null][] = [];
  const one = new Inbox<{ id: string; rev: number }>(
    () => new Promise((resolve) => reads.push(resolve)),
    (id, fresh) => void woken.push([id, fresh?.rev ?? null]),
  );
  return { one, reads, woken };
}

it("wakes with the rows that were read", async () => {
  const { one, reads, woken } = inbox();
  const done = one.read();
  reads[0]?.([
    { id: "a", rev: 1 },
    { id: "b", rev: 4 },
  ]);
  await done;
  expect(woken).toEqual([
    ["a", 1],
    ["b", 4],
  ]);
});

it("gives no row that was written while it was being read", async () => {
  const { one, reads, woken } = inbox();
  one.written("b");
  const done = one.read();
  one.written("a");
  reads[0]?.([
    { id: "a", rev: 1 },
    { id: "b", rev: 1 },
  ]);
  await done;
  expect(woken).toEqual([
    ["a", null],
    ["b", 1],
  ]);
});

it("reads once more for all who asked during a read, never two at a time", async () => {
  const { one, reads, woken } = inbox();
  const done = one.read();
  await Promise.all([one.read(), one.read()]);
  expect(reads).toHaveLength(1);
  reads[0]?.([]);
  await expect.poll(() => reads.length).toBe(2);
  reads[1]?.([{ id: "a", rev: 2 }]);
  await done;
  expect(reads).toHaveLength(2);
  expect(woken).toEqual([["a", 2]]);
});

it("can be asked again after a read that failed", async () => {
  let fail = true;
  const one = new Inbox(
    () => (fail ? Promise.reject(new Error("away")) : Promise.resolve([{ id: "a" }])),
    () => undefined,
  );
  await expect(one.read()).rejects.toThrow("away");
  fail = false;
  await one.read();
});
