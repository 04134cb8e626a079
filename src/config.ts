import { createHash } from "node:crypto";
import { isIP } from "node:net";
import { cpus, hostname, totalmem } from "node:os";
import { resolve } from "node:path";
import { type BlobPlace, type BucketCredentials, blobPlaceRule, parseBlobPlace } from "./core/blob-store.ts";
import { hostNamePattern } from "./core/host.ts";

/**
 * The settings of one Berth process, read once from the environment. `instance` tells several Berths on one machine
 * apart; every host-wide name (cgroup, nft table, veth, run directory) carries it.
 */
export interface Config {
  role: "all" | "api" | "worker";
  listen: Address;
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
  /** What containers can ask of the host that they are placed on. */
  hostLabels: Readonly<Record<string, string>>;
  /** Where a worker's agent listens for API processes of other machines; null: on a Unix socket, for this one's. */
  agentListen: Address | null;
  /** The API's internal listener, for a worker on another machine. */
  apiUrl: string | null;
  /** With what such a worker joins. */
  joinToken: string | null;
  portRange: { first: number; last: number };
  /** Registry host → base URL of its mirror. */
  registryMirrors: ReadonlyMap<string, string>;
  insecureRegistries: ReadonlySet<string>;
  /** CIDR blocks of private networks that outbound connections may reach. */
  outboundAllow: readonly string[];
  /** CIDR blocks of private networks that containers and the steps of builds may reach. */
  egressAllow: readonly string[];
  corsOrigins: readonly string[];
  /** Where clients and webhooks reach the API; null: where a client says that it does. */
  publicUrl: string | null;
  logLevel: string;
  /** For tests: the name of isolation/failpoint.ts at which the worker kills itself. */
  failpoint: string | null;
  /** Where the cluster's blobs are kept. */
  blobStore: BlobPlace;
  /** Of the bucket; null: there is none. */
  bucketCredentials: BucketCredentials | null;
  /** Where the API listens for workers of other machines; null: it does not. */
  internalListen: Address | null;
  /** PEM files of the internal listener's certificate (with its chain) and key; null: TLS by the keys of hosts and join tokens. */
  internalTls: { certificate: string; key: string } | null;
  /** PEM file of the authorities that a worker trusts for the internal listener; null: those that Node trusts. */
  internalCa: string | null;
  host: { cpus: number; memory: number };
}

/** Where to listen. */
export interface Address {
  host: string;
  port: number;
}

/** A setting that can't be used; `message` is the one line to show. */
export class ConfigError extends Error {}

type Environment = Readonly<Record<string, string | undefined>>;

/** The variable's text when it is set, has a value (an empty variable is an unset one) and passes `good`. */
function text(env: Environment, name: string, good: (value: string) => boolean, rule: string): string | null {
  const value = env[name] ?? "";
  if (value === "") return null;
  if (!good(value)) throw new ConfigError(`${name}: ${rule}`);
  return value;
}

function choice<const T extends string>(env: Environment, name: string, values: readonly T[], fallback: T): T {
  const value = env[name] ?? "";
  if (value === "") return fallback;
  const known = values.find((each) => each === value);
  if (known === undefined) throw new ConfigError(`${name}: must be one of ${values.join(", ")}`);
  return known;
}

/** Values that are separated by commas. */
function list(env: Environment, name: string): string[] {
  const parts = (env[name] ?? "").split(",");
  return parts.map((part) => part.trim()).filter((part) => part !== "");
}

/** CIDR blocks and addresses that are separated by commas, in a form that nft reads, too. */
function networks(env: Environment, name: string): string[] {
  const good = (block: string) => {
    const [, address = "", bits = "0"] = /^([\da-f.:]+)(?:\/(\d{1,3}))?$/i.exec(block) ?? [];
    const family = isIP(address);
    return family !== 0 && Number(bits) <= (family === 4 ? 32 : 128);
  };
  const blocks = list(env, name);
  if (!blocks.every(good))
    throw new ConfigError(`${name}: must be CIDR blocks such as 10.0.0.0/8, separated by commas`);
  return blocks;
}

function listenAddress(env: Environment, name: string): Address | null {
  const good = (value: string) => /^[^:]+:\d{1,5}$/.test(value) && Number(value.split(":")[1]) <= 65_535;
  const value = text(env, name, good, "must be ADDRESS:PORT, the port at most 65535");
  if (value === null) return null;
  const [host = "", port = ""] = value.split(":");
  return { host, port: Number(port) };
}

function pemFile(env: Environment, name: string): string | null {
  return text(env, name, (value) => value.startsWith("/"), "must be the absolute path of a PEM file");
}

function internalTls(env: Environment): Config["internalTls"] {
  const certificate = pemFile(env, "BERTH_INTERNAL_TLS_CERT");
  const key = pemFile(env, "BERTH_INTERNAL_TLS_KEY");
  if (certificate === null && key === null) return null;
  if (certificate !== null && key !== null) return { certificate, key };
  const missing = key === null ? "BERTH_INTERNAL_TLS_KEY" : "BERTH_INTERNAL_TLS_CERT";
  throw new ConfigError(`${missing}: must be set too: neither certificate nor key is of use alone`);
}

function blobStore(env: Environment, dataDir: string): BlobPlace {
  const value = env.BERTH_BLOB_STORE ?? "";
  if (value === "" || value === "file:") return { kind: "file", directory: `${dataDir}/blobs` };
  const place = parseBlobPlace(value);
  if (place === null) throw new ConfigError(`BERTH_BLOB_STORE: ${blobPlaceRule}`);
  return place;
}

/** Berth's own variables, or else those that every S3 client knows. */
function bucketCredentials(env: Environment, { kind }: BlobPlace): BucketCredentials | null {
  if (kind !== "s3") return null;
  const names = (env.BERTH_S3_ACCESS_KEY_ID ?? "") === "" ? "AWS" : "BERTH_S3";
  const value = (name: string) => text(env, `${names}_${name}`, () => true, "");
  const [accessKeyId, secretAccessKey] = [value("ACCESS_KEY_ID"), value("SECRET_ACCESS_KEY")];
  if (accessKeyId === null || secretAccessKey === null) {
    throw new ConfigError("BERTH_S3_ACCESS_KEY_ID: must be set for s3://, and BERTH_S3_SECRET_ACCESS_KEY with it");
  }
  return { accessKeyId, secretAccessKey, sessionToken: value("SESSION_TOKEN") };
}

function portRange(env: Environment): Config["portRange"] {
  const parse = (value: string) => (/^\d{1,5}-\d{1,5}$/.test(value) ? value.split("-").map(Number) : []);
  const good = (value: string) => {
    const [first = 0, last = 0] = parse(value);
    return first >= 1 && last <= 65_535 && first <= last;
  };
  const rule = "must be FIRST-LAST within 1-65535, first before last";
  const [first = 0, last = 0] = parse(text(env, "BERTH_PORT_RANGE", good, rule) ?? "8000-8999");
  return { first, last };
}

function hostLabels(env: Environment): Record<string, string> {
  const pairs = list(env, "BERTH_HOST_LABELS").map((pair) => {
    const [, name, value] = /^([\w./-]{1,255})=(.{0,1024})$/.exec(pair) ?? [];
    if (name === undefined || value === undefined) {
      throw new ConfigError("BERTH_HOST_LABELS: must be NAME=VALUE, separated by commas");
    }
    return [name, value] as const;
  });
  return Object.fromEntries(pairs);
}

function registryMirrors(env: Environment): Map<string, string> {
  const mirrors = new Map<string, string>();
  for (const entry of list(env, "BERTH_REGISTRY_MIRRORS")) {
    const equals = entry.indexOf("=");
    if (equals < 1 || !URL.canParse(entry.slice(equals + 1))) {
      throw new ConfigError("BERTH_REGISTRY_MIRRORS: must be REGISTRY=URL, separated by commas");
    }
    mirrors.set(entry.slice(0, equals), entry.slice(equals + 1).replace(/\/$/, ""));
  }
  return mirrors;
}

/**
 * Reads the settings. By hand, since the supervisor reads them before it starts anything: a schema library would add
 * 0.1 s to each start.
 * @throws ConfigError naming the first variable that has a bad value
 */
export function readConfig(env: Environment): Config {
  const any = () => true;
  const atLeast = (length: number) => (value: string) => value.length >= length;
  const hostName = (value: string) => hostNamePattern.test(value);
  const postgres = (value: string) => /^postgres(ql)?:\/\//.test(value);
  const http = (value: string) => /^(?:tls|https?):\/\//.test(value) && URL.canParse(value);
  const absolute = (value: string) => value.startsWith("/");
  const root = process.getuid?.() === 0;
  const home = root ? "/var/lib/berth" : `${env.HOME ?? "."}/.local/share/berth`;
  const dataDir = resolve(text(env, "BERTH_DATA_DIR", any, "") ?? home);
  const instance = createHash("sha256").update(dataDir).digest("hex").slice(0, 6);
  const runDir = root ? `/run/berth/${instance}` : `${dataDir}/run`;
  const blobs = blobStore(env, dataDir);
  return {
    role: choice(env, "BERTH_ROLE", ["all", "api", "worker"], "all"),
    listen: listenAddress(env, "BERTH_LISTEN") ?? { host: "127.0.0.1", port: 7070 },
    dataDir,
    // The supervisor sets it for its children, which need not be root to share root's run directory.
    runDir: text(env, "BERTH_RUN_DIR", absolute, "must be an absolute path") ?? runDir,
    instance,
    databaseUrl: text(env, "BERTH_DATABASE_URL", postgres, "must be a postgres:// URL"),
    adminToken: text(env, "BERTH_ADMIN_TOKEN", atLeast(20), "must have at least 20 characters"),
    secretKey: text(env, "BERTH_SECRET_KEY", atLeast(32), "must have at least 32 characters"),
    demo: choice(env, "BERTH_DEMO", ["0", "1"], "1") === "1",
    runtime: (env.BERTH_RUNTIME ?? "") === "" ? null : choice(env, "BERTH_RUNTIME", ["crun", "runc"], "crun"),
    hostName: text(env, "BERTH_HOST_NAME", hostName, "must be letters, digits, `.`, `_` and `-`") ?? hostname(),
    hostAddress: text(env, "BERTH_HOST_ADDRESS", any, "") ?? "127.0.0.1",
    hostLabels: hostLabels(env),
    agentListen: listenAddress(env, "BERTH_AGENT_LISTEN"),
    apiUrl: text(env, "BERTH_API_URL", http, "must be a tls://, https:// or http:// URL")?.replace(/\/$/, "") ?? null,
    joinToken: text(env, "BERTH_JOIN_TOKEN", any, ""),
    portRange: portRange(env),
    registryMirrors: registryMirrors(env),
    insecureRegistries: new Set(list(env, "BERTH_INSECURE_REGISTRIES")),
    outboundAllow: list(env, "BERTH_OUTBOUND_ALLOW"),
    egressAllow: networks(env, "BERTH_EGRESS_ALLOW"),
    corsOrigins: list(env, "BERTH_CORS_ORIGINS"),
    publicUrl: text(env, "BERTH_PUBLIC_URL", http, "must be an http:// or https:// URL"),
    logLevel: choice(env, "BERTH_LOG_LEVEL", ["trace", "debug", "info", "warn", "error", "silent"], "warn"),
    failpoint: text(
      env,
      "BERTH_FAILPOINT",
      (value) => /^[a-z]+\.[a-z]+$/.test(value),
      "must be the name of a failpoint",
    ),
    blobStore: blobs,
    bucketCredentials: bucketCredentials(env, blobs),
    internalListen: listenAddress(env, "BERTH_INTERNAL_LISTEN"),
    internalTls: internalTls(env),
    internalCa: pemFile(env, "BERTH_INTERNAL_CA"),
    host: { cpus: cpus().length, memory: totalmem() },
  };
}
