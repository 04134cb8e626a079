import { type ChildProcess, spawn } from "node:child_process";
import { closeSync, openSync, readlinkSync, watch } from "node:fs";
import { access, readFile, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";

/** How the embedded Postgres is run. Nothing outside `dir` is writable to its user, and root writes nothing inside. */
export interface EmbeddedOptions {
  /** Directory of initdb and postgres. */
  bin: string;
  /** An existing directory of the server's user; the data is `data` in it. */
  dir: string;
  /** An existing directory of the server's user, for the Unix socket: at most 80 characters. */
  socketDir: string;
  /** An existing directory that the server's user can read, for the rules of who may be which role. */
  rulesDir: string;
  /** The server's log file. */
  log: string;
  /** argv before a program that makes it run as the server's user, which can't be root. */
  launch: readonly string[];
  /** Which operating-system user may be which role of the database (peer authentication). */
  identities: readonly (readonly [user: string, role: string])[];
}

/** A server that accepts connections. */
export interface EmbeddedServer {
  pid: number;
  /** It ran already: a supervisor that was killed had left it. */
  adopted: boolean;
  exited: Promise<void>;
  /** Disconnects the clients, makes a checkpoint and ends. */
  stop(): Promise<void>;
}

/** The role that owns the database; the API's role is made by the migrations. */
const owner = "berth_owner";
const database = "berth";

// Small, for tens of connections; durable. No replication, so the log holds only what recovery needs.
const settings = {
  listen_addresses: "",
  max_connections: "60",
  shared_buffers: "48MB",
  io_method: "sync",
  wal_level: "minimal",
  max_wal_senders: "0",
  max_wal_size: "512MB",
  min_wal_size: "64MB",
  max_worker_processes: "2",
  max_parallel_workers: "0",
  autovacuum_max_workers: "2",
  jit: "off",
  timezone: "UTC",
  log_timezone: "UTC",
  log_checkpoints: "off",
};

/** A clean shutdown takes well below this; then the server ends at once and recovers at its next start. */
const stopMs = 15_000;

/**
 * Starts the server, or adopts the one that runs on this data already, and returns once it accepts connections.
 * The first start makes the data: all of it or nothing.
 */
export async function startEmbedded(options: EmbeddedOptions): Promise<EmbeddedServer> {
  const data = join(options.dir, "data");
  const made = await access(join(data, "PG_VERSION")).then(
    () => true,
    () => false,
  );
  if (!made) await makeData(options, data);
  const [hba, ident] = [join(options.rulesDir, "pg_hba.conf"), join(options.rulesDir, "pg_ident.conf")];
  // Hosts have passwords: those of other machines come by a process of the API's user.
  await writeFile(hba, "local all +berth_worker scram-sha-256\nlocal all all peer map=berth\n");
  await writeFile(ident, options.identities.map(([user, role]) => `berth ${user} ${role}\n`).join(""));
  const running = await runningEmbedded(options.dir);
  if (running !== null) {
    // Its rules may be those of an earlier Berth.
    process.kill(running.pid, "SIGHUP");
    return running;
  }
  const all = { ...settings, unix_socket_directories: options.socketDir, hba_file: hba, ident_file: ident };
  const flags = Object.entries(all).flatMap(([name, value]) => ["-c", `${name}=${value}`]);

  const log = openSync(options.log, "w", 0o600);
  // In a session of its own: Ctrl-C in a terminal must not reach it before its clients have ended.
  const argv = [...options.launch, join(options.bin, "postgres"), "-D", data, ...flags];
  const child = launch(argv, { stdio: ["ignore", log, log], detached: true });
  closeSync(log);
  // The programs before it replace themselves with it, so the pid is the server's own.
  const pid = child.pid ?? 0;
  const exited = exitOf(child).then(() => undefined);
  if (!(await becomesReady(data, pid, exited))) {
    const words = (await readFile(options.log, "utf8")).trim().split("\n").slice(-3).join(" | ");
    throw new Error(`the embedded Postgres did not start: ${words}`);
  }
  return { pid, adopted: false, exited, stop: () => stop(pid, data, exited) };
}

/** The server that runs on `dir`'s data, whoever started it; null when there is none. */
export async function runningEmbedded(dir: string): Promise<EmbeddedServer | null> {
  const data = join(dir, "data");
  const { pid, status } = await readPidFile(data);
  if (!serves(pid, data)) return null;
  const exited = untilGone(pid, data);
  if (status === "stopping" || !(await becomesReady(data, pid, exited))) {
    await exited;
    return null;
  }
  return { pid, adopted: true, exited, stop: () => stop(pid, data, exited) };
}

async function makeData(options: EmbeddedOptions, data: string): Promise<void> {
  const fresh = join(options.dir, "data.new");
  await rm(fresh, { recursive: true, force: true });
  const locale = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C.UTF-8", "--encoding=UTF8"];
  const initdb = ["initdb", "-D", fresh, "-U", owner, "--auth=peer", "--no-instructions", ...locale];
  const single = ["postgres", "--single", "-D", fresh, "postgres"];
  await run(options, initdb, "");
  await run(options, single, `create database ${database}\n`);
  await rename(fresh, data);
}

async function run(options: EmbeddedOptions, argv: readonly string[], input: string): Promise<void> {
  const [program = "", ...args] = argv;
  const child = launch([...options.launch, join(options.bin, program), ...args], { stdio: "pipe", detached: false });
  let said = "";
  const keep = (chunk: Buffer) => {
    said = (said + chunk.toString()).slice(-2000);
  };
  child.stdout?.on("data", keep);
  child.stderr?.on("data", keep);
  child.stdin?.end(input);
  const code = await exitOf(child);
  if (code !== 0) throw new Error(`${program} ended with ${String(code)}: ${said.trim()}`);
}

function launch(argv: readonly string[], how: { stdio: "pipe" | ["ignore", number, number]; detached: boolean }) {
  const [program = "", ...args] = argv;
  return spawn(program, args, { ...how, cwd: "/", env: { LC_ALL: "C.UTF-8", PATH: "/usr/sbin:/usr/bin:/sbin:/bin" } });
}

function exitOf(child: ChildProcess): Promise<number | null> {
  return new Promise((resolve, reject) => {
    child.once("error", reject);
    child.once("exit", (code) => {
      resolve(code);
    });
  });
}

/** What `postmaster.pid` says: its first line is the pid, its eighth the status. pid 0: there is no such file. */
async function readPidFile(data: string): Promise<{ pid: number; status: string }> {
  const lines = (await readFile(join(data, "postmaster.pid"), "utf8").catch(() => "")).split("\n");
  return { pid: Number(lines[0] ?? 0), status: (lines[7] ?? "").trim() };
}

/**
 * Whether the server gets ready before it ends: it says so in its pid file, and the kernel tells of each change. A
 * server that was killed leaves its file behind, so the pid counts.
 */
function becomesReady(data: string, pid: number, exited: Promise<void>): Promise<boolean> {
  return new Promise((resolve) => {
    const settle = (ready: boolean) => {
      watcher.close();
      resolve(ready);
    };
    const look = async () => {
      const file = await readPidFile(data);
      if (file.pid === pid && file.status === "ready") settle(true);
    };
    const watcher = watch(data, (_, name) => {
      if (name === "postmaster.pid") void look();
    });
    void look();
    void exited.then(() => {
      settle(false);
    });
  });
}

/**
 * Whether the process is the server of this data: that is a server's working directory. The pid may be another
 * program's by now, or that of a dead server that nobody has waited for.
 */
function serves(pid: number, data: string): boolean {
  try {
    return readlinkSync(`/proc/${String(pid)}/cwd`) === data;
  } catch {
    return false;
  }
}

/** Resolves when a process that is not our child has ended; looks ten times a second. */
function untilGone(pid: number, data: string): Promise<void> {
  return new Promise((resolve) => {
    const timer = setInterval(() => {
      if (serves(pid, data)) return;
      clearInterval(timer);
      resolve();
    }, 100);
  });
}

async function stop(pid: number, data: string, exited: Promise<void>): Promise<void> {
  if (serves(pid, data)) process.kill(pid, "SIGINT");
  const timer = setTimeout(() => {
    if (serves(pid, data)) process.kill(pid, "SIGQUIT");
  }, stopMs);
  await exited;
  clearTimeout(timer);
}
