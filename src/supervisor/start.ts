import { join } from "node:path";
import type { Config } from "../config.ts";
import { Child } from "./child.ts";
import { Database } from "./database.ts";
import { childEnvironment } from "./environment.ts";
import { type Ground, layGround, type Program } from "./ground.ts";

/** What is running; durations in milliseconds since the start. null: the role doesn't have that part. */
export interface Running {
  database: { adopted: boolean; readyMs: number } | null;
  migrations: number;
  apiMs: number | null;
  workerMs: number | null;
  token: Ground["token"];
  /** Ends API, worker and database, in this order; containers go on. */
  stop(): Promise<void>;
}

/**
 * Starts what the settings' role asks for: the database, unless one is given, and API and worker, which load their code
 * meanwhile. All or nothing: what has been started is stopped again when a part can't start.
 * @throws Error whose message says what could not start and why
 */
export async function startBerth(
  config: Config,
  env: Readonly<Record<string, string | undefined>>,
  program: Program,
  say: (line: string) => void,
): Promise<Running> {
  const started = performance.now();
  const elapsed = () => performance.now() - started;
  const { promise: begin, resolve: letBegin } = Promise.withResolvers<void>();
  const ground = await layGround(config, program);
  const child = (role: "api" | "worker") => {
    const childEnv = childEnvironment(env, config, role, ground.secretKey);
    const pidFile = join(config.runDir, `${role}.pid`);
    return new Child({ name: role, argv: ground[role], env: childEnv, pidFile, begin, say });
  };
  // A worker that has joined finds the database prepared: it is the API's.
  const joined = config.role === "worker" && ground.secretKey === null;
  const api = config.role === "worker" ? null : child("api");
  const worker = config.role === "api" ? null : child("worker");
  let database: Database | null = null;
  const stop = async () => {
    await api?.stop();
    await worker?.stop();
    await database?.stop();
  };
  try {
    const roles = Promise.all([
      api === null ? null : api.start().then(elapsed),
      worker === null ? null : worker.start().then(elapsed),
    ]);
    // When the database fails, that is what to tell; the children end with it.
    roles.catch(() => undefined);
    // Loaded when the roles' processes are under way: they take longest.
    const preparation = import("../db/prepare.ts");
    if (config.databaseUrl === null && config.role !== "worker") database = await Database.start(ground.database, say);
    const databaseMs = elapsed();
    const address = config.databaseUrl === null ? { socketDir: ground.socketDir } : { url: config.databaseUrl };
    const { admitApi, prepareDatabase } = await preparation;
    const { migrations } = joined
      ? { migrations: 0 }
      : await prepareDatabase(address, ground.token?.text ?? null, ground.secretKey);
    if (config.databaseUrl !== null && api !== null && ground.secretKey !== null) {
      await admitApi(config.databaseUrl, ground.secretKey);
    }
    letBegin();
    const [apiMs, workerMs] = await roles;
    return {
      database: database === null ? null : { adopted: database.adopted, readyMs: databaseMs },
      migrations,
      apiMs,
      workerMs,
      token: ground.token,
      stop,
    };
  } catch (error) {
    await stop();
    throw error;
  }
}
