import { readFile } from "node:fs/promises";
import { afterAll, beforeAll, describe, expect, inject, it } from "vitest";
import { newId } from "../../src/core/ids.ts";
import { hostKey } from "../../src/core/keys.ts";
import { openClient } from "../../src/db/client.ts";
import { connect } from "../../src/db/connect.ts";
import { admitHost, hostLogin, isAdmitted } from "../../src/db/host-login.ts";
import { forgetHost } from "../../src/db/hosts.ts";
import { heartbeat, openHostSession } from "../../src/db/hosts-worker.ts";
import { claimJobs, takeLost } from "../../src/db/leases.ts";
import { migrate, migrationFiles } from "../../src/db/migrate.ts";
import { prepareDatabase } from "../../src/db/prepare.ts";
import { registration } from "../support/host.ts";
import { attempt, logInHost, refused } from "../support/logged-in-host.ts";
import { createDatabase, type TestDatabase } from "../support/postgres.ts";

const socketDir = inject("postgresSocketDir");
let db: TestDatabase;

beforeAll(async () => {
  db = await createDatabase(socketDir);
});
afterAll(() => db.drop());

describe("a host that is forgotten", () => {
  it("is cut off at once and logs in no more; alive, it is forgotten only by force", async () => {
    const gone = await logInHost(db, "gone");
    const { db: worker, sql } = gone.connection;
    const opened = await openHostSession(worker, gone.id, { ...registration, name: "gone" });
    expect(opened).toMatchObject({ id: gone.id });
    const before = await sql<{ pid: number }[]>`select pg_backend_pid() as pid`;
    expect(await forgetHost(db.api, gone.id)).toBe(false);
    expect(await heartbeat(worker, { id: gone.id, session: opened?.session ?? 0 }, 1)).toBe(true);

    expect(await forgetHost(db.api, gone.id, true)).toBe(true);
    const pids = before.map(({ pid }) => pid);
    await expect
      .poll(async () => (await db.owner`select from pg_stat_activity where pid = any(${pids})`).length)
      .toBe(0);
    const key = { id: gone.id, key: `the key of ${gone.id}` };
    const again = openClient({ url: db.url }, hostLogin(key), 1);
    expect(await isAdmitted(again)).toBe(false);
    await again.end();
    expect(await db.owner`select from pg_roles where rolname = ${`berth_${gone.id}`}`).toHaveLength(0);
    expect(await admitHost(db.api, key)).toBe(false);
    await gone.connection.close();
  });

  it("may do nothing between the end of its row and that of its connection", async () => {
    const gone = await logInHost(db, "going");
    const { sql } = gone.connection;
    const look = () => attempt(sql, "select from hosts");
    expect(await look()).toBeGreaterThan(0);
    await db.api`select berth_forget_host(${gone.id}, true)`;
    expect(await look()).toBe(refused);
    await db.api`select berth_end_sessions(${gone.id})`;
    await gone.connection.close();
  });

  it("gives up its jobs at once, however long it has leased them", async () => {
    const [gone, next] = [await logInHost(db, "holding"), await logInHost(db, "next")];
    const [projectId, id] = [newId("project"), newId("job")];
    await db.owner`insert into projects (id, name) values (${projectId}, 'holding')`;
    await db.owner`insert into jobs (id, project_id, kind, payload) values (${id}, ${projectId}, 'pull', '{}')`;
    const [job] = await claimJobs(gone.connection.sql, gone.id, { kinds: { pull: 1 }, suspect: true });
    expect(job).toMatchObject({ id });
    await gone.connection.sql`update jobs set lease_until = 'infinity'`;
    const taken = () => takeLost(next.connection.sql, next.id, { held: [], own: true });
    expect(await taken()).toEqual([]);
    await forgetHost(db.api, gone.id, true);
    expect(await taken()).toMatchObject([{ id, epoch: 2, lost: 1 }]);
  });

  it("of a host that is known no connection is ended", async () => {
    const known = await logInHost(db, "known");
    const pid = async () => (await known.connection.sql<{ pid: number }[]>`select pg_backend_pid() as pid`)[0]?.pid;
    const before = await pid();
    await db.api`select berth_end_sessions(${known.id})`;
    expect(await pid()).toBe(before);
  });
});

it("a host that was there before hosts had logins has one after the update", async () => {
  const database = `${db.name}_before`;
  await db.owner.unsafe(`create database ${database}`);
  const url = `postgres://postgres@${encodeURIComponent(socketDir)}/${database}`;
  const sql = openClient({ url }, "owner", 1);
  const [secretKey, id] = ["a secret key of the tests, long enough", newId("host")];
  const host = { id, key: hostKey(secretKey, id) };
  const worker = connect({ url }, hostLogin(host), { max: 1 });
  try {
    await sql`create table berth_migrations (name text primary key, at timestamptz not null default now())`;
    for (const name of (await migrationFiles()).filter((file) => file < "0012")) {
      await sql.unsafe(await readFile(new URL(`../../src/db/migrations/${name}`, import.meta.url), "utf8"));
      await sql`insert into berth_migrations (name) values (${name})`;
    }
    await sql`insert into hosts (id, name, address, agent_url, cpus, memory, disk, port_first, port_last)
      values (${id}, 'before', '127.0.0.1', 'unix:/x', 4, 1000, 1000, 8000, 8010)`;
    expect(await prepareDatabase({ url }, null, secretKey)).toMatchObject({ migrations: expect.any(Number) as number });
    expect(await attempt(worker.sql, "select from hosts")).toBe(1);
    expect(await attempt(worker.sql, "select from tokens")).toBe(refused);
    expect(await forgetHost(sql, id, true)).toBe(true);
  } finally {
    await worker.close();
    await sql.end();
    await db.owner.unsafe(`drop database ${database} with (force)`);
  }
});

it("also where the owner is no superuser: it makes the role's members and ends their connections", async () => {
  const [owner, database] = [`owner_${db.name}`, `${db.name}_owned`];
  await db.owner.unsafe(`create role ${owner} login createrole`);
  await db.owner.unsafe(`grant berth_api, berth_worker to ${owner} with admin option`);
  await db.owner.unsafe(`create database ${database} owner ${owner}`);
  const url = `postgres://${owner}@${encodeURIComponent(socketDir)}/${database}`;
  const sql = openClient({ url }, "owner", 1);
  const host = { id: newId("host"), key: "k" };
  const worker = connect({ url }, hostLogin(host), { max: 1 });
  try {
    await migrate(sql);
    await sql`insert into hosts (id, name, address, agent_url, cpus, memory, disk, port_first, port_last)
      values (${host.id}, 'owned', '127.0.0.1', 'unix:/x', 4, 1000, 1000, 8000, 8010)`;
    expect(await admitHost(sql, host)).toBe(true);
    expect(await attempt(worker.sql, "select from hosts")).toBe(1);
    // Unlike the tests' other databases this one was migrated itself.
    expect(await attempt(worker.sql, "create temporary table own (a int)")).toBe(refused);
    expect(await forgetHost(sql, host.id, true)).toBe(true);
    await expect
      .poll(async () => (await sql`select from pg_stat_activity where usename = ${hostLogin(host).name}`).length)
      .toBe(0);
    const again = openClient({ url }, hostLogin(host), 1);
    expect(await isAdmitted(again)).toBe(false);
    await again.end();
  } finally {
    await worker.close();
    await sql.end();
    await db.owner.unsafe(`drop database ${database} with (force)`);
    await db.owner.unsafe(`drop owned by ${owner}`);
    await db.owner.unsafe(`drop role ${owner}`);
  }
});
