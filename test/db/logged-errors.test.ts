import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { drizzle, sql } from "../../src/db/drizzle.ts";
import { shownInLog } from "../../src/log.ts";
import { createDatabase, type TestDatabase } from "../support/postgres.ts";

const secret = "hunter2-in-an-environment";
let database: TestDatabase;
beforeAll(async () => {
  database = await createDatabase(inject("postgresSocketDir"));
  await database.owner`create table kept (id int primary key, env text not null, n int check (n > 0))`;
});
afterAll(() => database.drop());

const failure = (query: PromiseLike<unknown>): Promise<unknown> =>
  Promise.resolve(query).then(
    () => null,
    (error: unknown) => error,
  );

test("a query that failed is logged by its reason, without the values that it was given", async () => {
  const { owner } = database;
  const errors = [
    await failure(owner`insert into kept values (1, ${secret}, -1)`),
    await failure(drizzle(owner).execute(sql`insert into kept values (1, ${secret}, -1)`)),
  ];
  // That the probe would find it: both errors carry the values.
  const carried = errors.map((error) => JSON.stringify(error, Object.getOwnPropertyNames(error)));
  for (const text of carried) expect(text).toContain(secret);
  for (const error of errors) {
    const shown = shownInLog(error);
    expect(shown).toMatchObject({ type: "PostgresError", code: "23514", constraint: "kept_n_check" });
    expect(JSON.stringify(shown)).not.toContain(secret);
  }
});

test("causes are shown to their end", () => {
  const error = new Error("outer", { cause: new Error("inner", { cause: "text" }) });
  expect(shownInLog(error)).toMatchObject({
    message: "outer",
    cause: { message: "inner", cause: { message: "text" } },
  });
});
