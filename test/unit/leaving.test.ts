import { expect, test } from "vitest";
import { Leaving } from "../../src/engine/build/leaving.ts";

/** A sandbox that is taken away when its turn has come, and has gone when `go` is called. */
function sandbox(leaving: Leaving) {
  const went = Promise.withResolvers<void>();
  const seen: string[] = [];
  let turn = Promise.resolve();
  const removal = async (): Promise<void> => {
    await turn;
    seen.push("going");
    await went.promise;
    seen.push("gone");
  };
  const started = Promise.withResolvers<void>();
  turn = leaving.add(started.promise.then(removal));
  started.resolve();
  return { seen, go: went.resolve, fail: went.reject };
}

/** Long enough for everything to have happened that waits for nothing. */
const settle = () => new Promise((resolve) => setImmediate(resolve));

test("a sandbox is taken away beside the next program, which waits for those of the programs before", async () => {
  const leaving = new Leaving();
  const one = sandbox(leaving);
  await settle();
  expect(one.seen).toEqual([]);
  // The second program waits for nothing, the third for what the second has begun.
  await leaving.begin();
  await settle();
  expect(one.seen).toEqual(["going"]);
  const two = sandbox(leaving);
  let third = false;
  const begun = leaving.begin().then(() => {
    third = true;
  });
  await settle();
  expect([two.seen, third]).toEqual([["going"], false]);
  one.go();
  await begun;
  two.go();
  await leaving.end();
  expect([one.seen, two.seen]).toEqual([
    ["going", "gone"],
    ["going", "gone"],
  ]);
});

test("the end has the last ones taken away, and tells of the one that could not be", async () => {
  const leaving = new Leaving();
  const [one, two] = [sandbox(leaving), sandbox(leaving)];
  one.fail(new Error("busy"));
  two.go();
  await expect(leaving.end()).rejects.toThrow("busy");
  expect(two.seen).toEqual(["going", "gone"]);
});
