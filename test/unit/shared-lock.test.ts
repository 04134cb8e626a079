import fc from "fast-check";
import { expect, test } from "vitest";
import { SharedLock } from "../../src/isolation/shared-lock.ts";

const forever = new AbortController().signal;

test("many share it or one has it alone; who comes first is first", async () => {
  const lock = new SharedLock();
  const order: string[] = [];
  const take = async (name: string, alone: boolean) => {
    const release = await lock.take(alone, forever);
    order.push(name);
    return release;
  };
  const [one, two] = await Promise.all([take("one", false), take("two", false)]);
  const alone = take("alone", true);
  const late = take("late", false);
  expect(lock.takeNow()).toBeNull();
  one();
  one();
  await Promise.resolve();
  expect(order).toEqual(["one", "two"]);
  two();
  const release = await alone;
  expect(order).toEqual(["one", "two", "alone"]);
  release();
  (await late)();
  expect(lock.takeNow()).not.toBeNull();
});

test("who gives up waiting lets those behind through", async () => {
  const lock = new SharedLock();
  const held = await lock.take(false, forever);
  const abort = new AbortController();
  const waiting = lock.take(true, abort.signal);
  const behind = lock.take(false, forever);
  abort.abort(new Error("cancelled"));
  await expect(waiting).rejects.toThrow("cancelled");
  (await behind)();
  held();
  await expect(lock.take(true, abort.signal)).rejects.toThrow("cancelled");
  expect(lock.takeNow()).not.toBeNull();
});

test("in whatever order it is taken and given back, one that has it alone is alone, and all get it", async () => {
  const wish = fc.record({ alone: fc.boolean(), turns: fc.integer({ min: 0, max: 3 }) });
  await fc.assert(
    fc.asyncProperty(fc.array(wish, { maxLength: 12 }), async (wishes) => {
      const lock = new SharedLock();
      let sharing = 0;
      let alone = 0;
      await Promise.all(
        wishes.map(async (one) => {
          for (let turn = 0; turn < one.turns; turn++) await Promise.resolve();
          const release = await lock.take(one.alone, forever);
          if (one.alone) alone++;
          else sharing++;
          expect(alone === 0 || (alone === 1 && sharing === 0)).toBe(true);
          for (let turn = 0; turn < one.turns; turn++) await Promise.resolve();
          if (one.alone) alone--;
          else sharing--;
          release();
        }),
      );
      expect(lock.takeNow()).not.toBeNull();
    }),
  );
});
