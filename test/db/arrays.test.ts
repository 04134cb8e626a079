import fc from "fast-check";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { arrayTypes } from "../../src/db/arrays.ts";
import { createDatabase, type TestDatabase } from "../support/postgres.ts";

let database: TestDatabase;
beforeAll(async () => {
  database = await createDatabase(inject("postgresSocketDir"));
});
afterAll(() => database.drop());

test("every array column has a type that is written down", async () => {
  const rows = await database.owner<{ type: string }[]>`
    select distinct format_type(atttypid, null) "type" from pg_attribute a join pg_class c on c.oid = a.attrelid
    where c.relnamespace = 'public'::regnamespace and c.relkind = 'r' and attnum > 0 and attndims > 0`;
  expect(rows.length).toBeGreaterThan(0);
  for (const { type } of rows) expect(arrayTypes).toContain(type);
});

test("text comes back as it was given, whatever is in it", async () => {
  const text = fc.option(fc.string({ unit: "binary" }).filter((value) => !value.includes("\0")));
  await fc.assert(
    fc.asyncProperty(fc.array(text), async (given) => {
      const [row] = await database.owner`select ${given}::text[] as "back", cardinality(${given}::text[]) as n`;
      expect(row).toEqual({ back: given, n: given.length });
    }),
    { numRuns: 200 },
  );
  const awkward = ["NULL", "", " ", ",", '"', "\\", "{}", 'a","b', "\\N", "\n"];
  expect((await database.owner`select ${awkward}::text[] as "back"`)[0]).toEqual({ back: awkward });
});

test("numbers and truths are read as what they are", async () => {
  const [row] = await database.owner`
    select ${[1, -2]}::int[] "ints", ${["3"]}::bigint[] "longs", ${[0.5]}::float8[] "doubles", array[true, false, null] "truths"`;
  expect(row).toEqual({ ints: [1, -2], longs: ["3"], doubles: [0.5], truths: [true, false, null] });
});
