import { createHash } from "node:crypto";
import { cpus, hostname, totalmem } from "node:os";
import { resolve } from "node:path";
import { z } from "zod";

/**
 * The settings of one Berth process, read once from the environment. `instance` tells several Berths on one machine
 * apart; every host-wide name (cgroup, nft table, veth, run directory) carries it.
 */
export interface Config {
  role: "all" | "api" | "worker";
  listen: { host: string; port: number };
  dataDir: string;
  /** Run state on a tmpfs: `/run/berth/<instance>`. */
  runDir: string;
  instance: string;
  /** null: the embedded database on a Unix socket in `runDir`. */
  databaseUrl: string | null;
  adminToken: string | null;
  secretKey: string | null;
  demo: boolean;
  runtime: "crun" | "runc" | null;
  hostName: string;
  /** Address that clients reach published ports at. */
  hostAddress: string;
  portRange: { first: number; last: number };
  /** Registry host → base URL of its mirror. */
  registryMirrors: ReadonlyMap<string, string>;
  insecureRegistries: ReadonlySet<string>;
  /** CIDR blocks of private networks that outbound connections may reach. */
  outboundAllow: readonly string[];
  corsOrigins: readonly string[];
  logLevel: string;
  host: { cpus: number; memory: number };
}

const list = z
  .string()
  .default("")
  .transform((text) =>
    text
      .split(",")
      .map((part) => part.trim())
      .filter((part) => part !== ""),
  );

const environment = z.object({
  BERTH_ROLE: z.enum(["all", "api", "worker"]).default("all"),
  BERTH_LISTEN: z
    .string()
    .regex(/^[^:]+:\d{1,5}$/, "must be ADDRESS:PORT")
    .default("127.0.0.1:7070"),
  BERTH_DATA_DIR: z.string().min(1).optional(),
  // The supervisor sets it for its children, which need not be root to share root's run directory.
  BERTH_RUN_DIR: z.string().startsWith("/", "must be an absolute path").optional(),
  BERTH_DATABASE_URL: z
    .string()
    .regex(/^postgres(ql)?:\/\//, "must be a postgres:// URL")
    .optional(),
  BERTH_ADMIN_TOKEN: z.string().min(20, "must have at least 20 characters").optional(),
  BERTH_SECRET_KEY: z.string().min(32, "must have at least 32 characters").optional(),
  BERTH_DEMO: z.enum(["0", "1"]).default("1"),
  BERTH_RUNTIME: z.enum(["crun", "runc"]).optional(),
  BERTH_HOST_NAME: z.string().min(1).default(hostname()),
  BERTH_HOST_ADDRESS: z.string().min(1).default("127.0.0.1"),
  BERTH_PORT_RANGE: z
    .string()
    .regex(/^\d{1,5}-\d{1,5}$/, "must be FIRST-LAST")
    .default("8000-8999"),
  BERTH_REGISTRY_MIRRORS: list,
  BERTH_INSECURE_REGISTRIES: list,
  BERTH_OUTBOUND_ALLOW: list,
  BERTH_CORS_ORIGINS: list,
  BERTH_LOG_LEVEL: z.enum(["trace", "debug", "info", "warn", "error", "silent"]).default("warn"),
});

/** A setting that can't be used; `message` is the one line to show. */
export class ConfigError extends Error {}

/** Reads the settings. @throws ConfigError naming the first variable that has a bad value. */
export function readConfig(env: Record<string, string | undefined>): Config {
  // An empty variable is an unset one, as in every shell.
  const given = Object.fromEntries(Object.entries(env).filter(([, value]) => value !== undefined && value !== ""));
  const parsed = environment.safeParse(given);
  if (!parsed.success) {
    const issue = parsed.error.issues[0];
    throw new ConfigError(`${String(issue?.path[0])}: ${issue?.message ?? "bad value"}`);
  }
  const e = parsed.data;
  const colon = e.BERTH_LISTEN.lastIndexOf(":");
  const port = Number(e.BERTH_LISTEN.slice(colon + 1));
  if (port > 65535) throw new ConfigError("BERTH_LISTEN: the port must be at most 65535");
  const [first = 0, last = 0] = e.BERTH_PORT_RANGE.split("-").map(Number);
  if (first < 1 || last > 65535 || first > last)
    throw new ConfigError("BERTH_PORT_RANGE: must be within 1-65535, first before last");
  const mirrors = new Map<string, string>();
  for (const entry of e.BERTH_REGISTRY_MIRRORS) {
    const equals = entry.indexOf("=");
    if (equals < 1 || !URL.canParse(entry.slice(equals + 1))) {
      throw new ConfigError("BERTH_REGISTRY_MIRRORS: must be REGISTRY=URL, separated by commas");
    }
    mirrors.set(entry.slice(0, equals), entry.slice(equals + 1).replace(/\/$/, ""));
  }
  const root = process.getuid?.() === 0;
  const dataDir = resolve(e.BERTH_DATA_DIR ?? (root ? "/var/lib/berth" : `${env.HOME ?? "."}/.local/share/berth`));
  const instance = createHash("sha256").update(dataDir).digest("hex").slice(0, 6);
  return {
    role: e.BERTH_ROLE,
    listen: { host: e.BERTH_LISTEN.slice(0, colon), port },
    dataDir,
    runDir: e.BERTH_RUN_DIR ?? (root ? `/run/berth/${instance}` : `${dataDir}/run`),
    instance,
    databaseUrl: e.BERTH_DATABASE_URL ?? null,
    adminToken: e.BERTH_ADMIN_TOKEN ?? null,
    secretKey: e.BERTH_SECRET_KEY ?? null,
    demo: e.BERTH_DEMO === "1",
    runtime: e.BERTH_RUNTIME ?? null,
    hostName: e.BERTH_HOST_NAME,
    hostAddress: e.BERTH_HOST_ADDRESS,
    portRange: { first, last },
    registryMirrors: mirrors,
    insecureRegistries: new Set(e.BERTH_INSECURE_REGISTRIES),
    outboundAllow: e.BERTH_OUTBOUND_ALLOW,
    corsOrigins: e.BERTH_CORS_ORIGINS,
    logLevel: e.BERTH_LOG_LEVEL,
    host: { cpus: cpus().length, memory: totalmem() },
  };
}
