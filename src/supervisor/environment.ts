import type { Config } from "../config.ts";
import { apiUrl } from "../db/api-login.ts";
import { directoriesOf } from "./directories.ts";

type Environment = Readonly<Record<string, string | undefined>>;

/** Of the variables that are not Berth's, those that a child may need: time zone, trusted certificates, a bucket's credentials. */
const passed = [
  "TZ",
  "NODE_EXTRA_CA_CERTS",
  "SSL_CERT_FILE",
  "SSL_CERT_DIR",
  "AWS_ACCESS_KEY_ID",
  "AWS_SECRET_ACCESS_KEY",
  "AWS_SESSION_TOKEN",
];
/** What only the supervisor uses. */
const kept = ["BERTH_ADMIN_TOKEN", "BERTH_DEMO", "BERTH_NO_INSTALL"];

/** The environment of the role's process: Berth's settings, with what the supervisor has settled filled in. */
export function childEnvironment(
  own: Environment,
  config: Config,
  role: "api" | "worker",
  secretKey: string | null,
): Record<string, string> {
  const env: Record<string, string> = { PATH: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" };
  for (const [name, value] of Object.entries(own)) {
    const wanted = passed.includes(name) || (name.startsWith("BERTH_") && !kept.includes(name));
    if (wanted && value !== undefined) env[name] = value;
  }
  env.BERTH_ROLE = role;
  env.BERTH_DATA_DIR = config.dataDir;
  env.BERTH_RUN_DIR = config.runDir;
  if (secretKey !== null) env.BERTH_SECRET_KEY = secretKey;
  // How the database's owner logs in is not for the API to know.
  if (role === "api" && config.databaseUrl !== null && secretKey !== null) {
    env.BERTH_DATABASE_URL = apiUrl(config.databaseUrl, secretKey);
  }
  // Large pages for what is not JavaScript's heap: a tenth of the time to load, where page faults are dear.
  env.GLIBC_TUNABLES = "glibc.malloc.hugetlb=1";
  env.NODE_COMPILE_CACHE = directoriesOf(config.dataDir, config.runDir).cache[role];
  return env;
}
