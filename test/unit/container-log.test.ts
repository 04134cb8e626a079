import { appendFileSync, mkdtempSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { afterAll, describe, expect, test, vi } from "vitest";
import { type Follow, type LogFilter, readLog } from "../../src/isolation/container-log.ts";

const directory = mkdtempSync(`${tmpdir()}/berth-test-log-`);
afterAll(() => {
  rmSync(directory, { recursive: true });
});

const both = { stdout: true, stderr: true };
const at = (second: number): string => new Date(1_700_000_000_000 + second * 1000).toISOString();
const line = (number: number, stream = number % 3 === 0 ? "stderr" : "stdout"): string =>
  `${at(number)} ${stream} F ${"é".repeat(number % 50)}${String(number)}\n`;
const lines = (from: number, to: number): string =>
  Array.from({ length: to - from }, (_, index) => line(from + index)).join("");

async function read(path: string, filter: LogFilter = both): Promise<number[]> {
  const found: number[] = [];
  for await (const { text } of readLog(path, filter, null)) found.push(Number(text.replaceAll("é", "")));
  return found;
}

describe("the last lines of a log", () => {
  const path = `${directory}/log`;
  const total = 5000;
  // The last line is still being written; a line that is none is passed over.
  writeFileSync(path, `${lines(0, 2500)}nonsense\n${lines(2500, total)}${at(total)} stdout F half`);
  const all = Array.from({ length: total }, (_, number) => number);

  test.each([0, 1, 2, 100, 1234, total - 1, total, 1_000_000])("%i of them, across blocks", async (tail) => {
    expect(await read(path, { ...both, tail })).toEqual(tail === 0 ? [] : all.slice(-tail));
  });
  test("are counted behind the other filters", async () => {
    const errors = all.filter((number) => number % 3 === 0);
    expect(await read(path, { stdout: false, stderr: true, tail: 700 })).toEqual(errors.slice(-700));
    expect(await read(path, { ...both, tail: 3, until: at(99) })).toEqual([97, 98, 99]);
    expect(await read(path, { ...both, tail: 1000, since: at(total - 2) })).toEqual([total - 2, total - 1]);
  });
  test("of files without a whole line are none", async () => {
    for (const [name, text] of [
      ["empty", ""],
      ["torn", "2025"],
      ["long", "x".repeat(200_000)],
    ] as const) {
      writeFileSync(`${directory}/${name}`, text);
      expect(await read(`${directory}/${name}`, { ...both, tail: 5 })).toEqual([]);
    }
    expect(await read(`${directory}/absent`, { ...both, tail: 5 })).toEqual([]);
  });
  test("take no memory for their number", async () => {
    const large = `${directory}/large`;
    writeFileSync(large, "");
    for (let part = 0; part < 16; part++) appendFileSync(large, lines(0, 20_000).slice(0, 2 ** 20));
    const before = process.memoryUsage().arrayBuffers;
    let most = 0;
    let count = 0;
    for await (const { text } of readLog(large, { ...both, tail: 1_000_000 }, null)) {
      if (text === "") continue;
      if (count++ % 5000 === 0) most = Math.max(most, process.memoryUsage().arrayBuffers - before);
    }
    expect(count).toBeGreaterThan(100_000);
    expect(most).toBeLessThan(32 * 2 ** 20);
  });
});

test("following goes on in the file that its writer began anew", async () => {
  const path = `${directory}/followed`;
  writeFileSync(path, lines(0, 10));
  const stop = new AbortController();
  const seen: number[] = [];
  const follow = { ended: () => Promise.resolve(false), signal: stop.signal };
  for await (const { text } of readLog(path, { ...both, tail: 2 }, follow)) {
    seen.push(Number(text.replaceAll("é", "")));
    if (seen.length === 2) appendFileSync(path, lines(10, 12));
    if (seen.length === 4) {
      writeFileSync(`${path}.new`, lines(12, 15));
      renameSync(`${path}.new`, path);
    }
    if (seen.length === 7) stop.abort();
  }
  expect(seen).toEqual([8, 9, 10, 11, 12, 13, 14]);
});

test("a log that begins after its follower did, and one that ends, are told of at once", async () => {
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
  try {
    const path = `${directory}/not-yet`;
    const looks = new Set<() => void>();
    let isOver = false;
    const subscribed = Promise.withResolvers<undefined>();
    const follow: Follow = {
      ended: () => Promise.resolve(isOver),
      signal: new AbortController().signal,
      onChange: (look) => {
        looks.add(look);
        subscribed.resolve(undefined);
        return () => looks.delete(look);
      },
    };
    const following = readLog(path, both, follow);
    const first = following.next();
    await subscribed.promise;
    writeFileSync(path, lines(0, 1));
    for (const look of [...looks]) look();
    expect((await first).done).toBe(false);
    // Asked for the next one, it reads, and waits; nothing but the end comes.
    const second = following.next();
    isOver = true;
    await vi.waitFor(() => {
      expect(looks.size).toBeGreaterThan(0);
    });
    for (const look of [...looks]) look();
    expect((await second).done).toBe(true);
  } finally {
    vi.useRealTimers();
  }
});
