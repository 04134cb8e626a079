import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import postgres from "postgres";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { apiLogin, apiUrl } from "../../src/db/api-login.ts";
import { openClient } from "../../src/db/client.ts";
import { admitApi } from "../../src/db/prepare.ts";
import { transact } from "../../src/db/scope.ts";
import { createDatabase, type TestDatabase } from "../support/postgres.ts";

const secretKey = "a secret key of the tests, long enough";
const socketDir = inject("postgresSocketDir");
let database: TestDatabase;
let url: string;

beforeAll(async () => {
  database = await createDatabase(socketDir);
  url = `postgres://postgres@${encodeURIComponent(socketDir)}/${database.name}`;
  // Only this kind of role is asked for its password; everyone else is trusted on this server.
  const rules = join(socketDir, "data/pg_hba.conf");
  const asked = "local all /^berth_api_ scram-sha-256\n";
  const before = readFileSync(rules, "utf8");
  if (!before.startsWith(asked)) writeFileSync(rules, asked + before);
  await database.owner`select pg_reload_conf()`;
  await admitApi(url, secretKey);
  await database.owner`insert into projects (id, name) values ('prj_a', 'a'), ('prj_b', 'b')`;
  await database.owner`insert into jobs (id, project_id, kind, payload) values ('job_a', 'prj_a', 'pull', '{}'), ('job_b', 'prj_b', 'pull', '{}')`;
});
afterAll(async () => {
  await database.drop();
  const admin = postgres({ path: `${socketDir}/.s.PGSQL.5432`, username: "postgres", database: "postgres", max: 1 });
  await admin.unsafe(`drop role ${apiLogin(url, secretKey).name}`);
  await admin.end();
});

/** What code in an API process that logs in like this sees of all projects, by right and after it left its role. */
async function seen(at: string) {
  const sql = openClient({ url: at }, "api", 1);
  try {
    const scoped = await transact(sql, { projectId: "prj_a" }, (tx) => tx`select id from jobs`);
    await sql`set role none`;
    const reset = await sql`select id from jobs order by id`;
    const owner = await sql`set role postgres`.then(
      () => "allowed",
      (error: unknown) => (error as { code: string }).code,
    );
    return { scoped: [...scoped], reset: [...reset], owner };
  } finally {
    await sql.end();
  }
}

test("the API's own login can't become more than the API, whatever role it leaves", async () => {
  expect(await seen(apiUrl(url, secretKey))).toEqual({ scoped: [{ id: "job_a" }], reset: [], owner: "42501" });
  // With the owner's login the same code sees everything: that is what the login is for.
  expect(await seen(url)).toMatchObject({ scoped: [{ id: "job_a" }], reset: [{ id: "job_a" }, { id: "job_b" }] });
});

test("its password follows from the secret key, is checked, and is made anew at each start", async () => {
  const wrong = openClient({ url: apiUrl(url, `${secretKey}!`) }, "api", 1);
  await expect(wrong`select 1`).rejects.toMatchObject({ code: "28P01" });
  await wrong.end();
  await admitApi(url, `${secretKey}!`);
  const now = openClient({ url: apiUrl(url, `${secretKey}!`) }, "api", 1);
  expect([...(await now`select session_user::text as "login", current_user::text as "role"`)]).toEqual([
    { login: apiLogin(url, secretKey).name, role: "berth_api" },
  ]);
  await now.end();
});
