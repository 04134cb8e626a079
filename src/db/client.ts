import postgres from "postgres";
import { arrayHandlers } from "./arrays.ts";

/** Where the database is: a URL, or the Unix socket's directory of the embedded one. */
export type DatabaseAddress = { url: string } | { socketDir: string };

/** Who logs in, and with what. */
export interface Login {
  name: string;
  password: string;
}

/** How the driver behaves wherever it is used. */
export const driverOptions = {
  /** Timestamps stay as the server writes them: microseconds, which a `Date` would cut off, make the cursors of lists. */
  types: {
    ...arrayHandlers,
    date: { to: 1184, from: [1082, 1114, 1184], serialize: (value: unknown) => value, parse: (text: string) => text },
  },
  fetch_types: false,
  /** Seconds until the next attempt to connect: a database that is back is found within one. */
  backoff: (attempt: number) => Math.min(0.02 * 2 ** attempt, 1),
};

/**
 * The driver's connections, up to `max`, opened when first used.
 * As `owner` (migrations, admitting hosts) every project's rows are seen; as `api`, or by the login of a host, row-level
 * security holds. On the embedded database the operating-system user decides which of the first two a process can be (peer
 * authentication).
 */
export function openClient(address: DatabaseAddress, as: "owner" | "api" | Login, max: number): postgres.Sql {
  const login = typeof as === "string" ? {} : { username: as.name, password: as.password };
  const options = {
    max,
    idle_timeout: 0,
    connect_timeout: 10,
    onnotice: () => undefined,
    ...driverOptions,
    connection: {
      application_name: `berth-${typeof as === "string" ? as : "worker"}`,
      // Queries are prepared, and find their rows by keys whatever the values: planning them anew costs more than they do.
      plan_cache_mode: "force_generic_plan",
      // A request must not hold a connection, or a lock that others wait for, longer than its client waits.
      ...(as === "api" ? { statement_timeout: 30_000, idle_in_transaction_session_timeout: 30_000 } : {}),
    },
  };
  return "url" in address
    ? postgres(address.url, {
        ...options,
        ...socketOf(address.url),
        ...login,
        connection: { ...options.connection, ...(as === "api" ? { role: "berth_api" } : {}) },
      })
    : postgres({
        ...options,
        path: `${address.socketDir}/.s.PGSQL.5432`,
        database: "berth",
        username: as === "api" ? "berth_api" : "berth_owner",
        ...login,
      });
}

/** A URL whose host is the directory of a Unix socket, percent-encoded, as libpq has it. */
function socketOf(url: string): { host?: string } {
  const host = URL.canParse(url) ? decodeURIComponent(new URL(url).hostname) : "";
  return host.startsWith("/") ? { host } : {};
}
