import { type ApiAccess } from "../core/api-access.ts";
import { BerthError } from "../core/errors.ts";
import { formatCredential } from "../core/keys.ts";
import type { DatabaseAddress } from "../db/client.ts";
import { type Connection, connect } from "../db/connect.ts";
import { admitHost, hostLogin, isAdmitted, isRefusal } from "../db/host-login.ts";
import { databaseWay, serveDatabase } from "./database-tunnel.ts";
import type { Admission, HostIdentity } from "./host-identity.ts";

/** Where a host finds the database. */
export interface HostDatabase {
  /** null: through the API. */
  url: string | null;
  /** Where the API's database is served then. */
  socketDir: string;
}

/**
 * Connects to the database as a host, by that host's own login; null: it is not known, as it was forgotten. That a login is
 * refused says so of no host by itself: the settings of a database can refuse anybody.
 * @throws BerthError `unavailable`; `unauthorized` when the database refuses a host that is known
 */
export async function connectHost(
  { url, socketDir }: HostDatabase,
  admission: Admission,
  identity: HostIdentity,
): Promise<Connection | null> {
  if ("secretKey" in admission) {
    const { database } = admission;
    return (
      (await connectAs(database, identity)) ??
      ((await admitAgain(database, identity)) ? orRefused(await connectAs(database, identity)) : null)
    );
  }
  const api = { ...admission.api, credential: formatCredential(identity) };
  if (url !== null) {
    const connection = await connectAs({ url }, identity);
    if (connection !== null) return connection;
    return (await databaseWay(api)) === "unknown" ? null : orRefused(null);
  }
  return connectThrough(api, socketDir, identity);
}

/** Whether that a query failed means that the host was forgotten while it was connected. @throws BerthError `unavailable` */
export async function isForgotten(admission: Admission, identity: HostIdentity, failure: unknown): Promise<boolean> {
  if ("secretKey" in admission) return isRefusal(failure);
  return (await databaseWay({ ...admission.api, credential: formatCredential(identity) })) === "unknown";
}

/** null: the database does not let it in. */
async function connectAs(address: DatabaseAddress, identity: HostIdentity): Promise<Connection | null> {
  const connection = connect(address, hostLogin(identity));
  if (await isAdmitted(connection.sql)) return connection;
  await connection.close();
  return null;
}

async function connectThrough(api: ApiAccess, socketDir: string, identity: HostIdentity): Promise<Connection | null> {
  const way = await databaseWay(api);
  if (way === "unknown") return null;
  if (way === "elsewhere") {
    throw new BerthError(
      "unavailable",
      "BERTH_DATABASE_URL: is needed, as this Berth's database is not the API's own; without user and password",
    );
  }
  await serveDatabase(api, socketDir);
  return orRefused(await connectAs({ socketDir }, identity));
}

/** The key that passwords follow from may be another since the last start. False: there is no such host. */
async function admitAgain(database: DatabaseAddress, identity: HostIdentity): Promise<boolean> {
  const owner = connect(database, "owner", { max: 1 });
  try {
    return await admitHost(owner.sql, identity);
  } finally {
    await owner.close();
  }
}

function orRefused(connection: Connection | null): Connection {
  if (connection !== null) return connection;
  throw new BerthError("unauthorized", "The database does not let this host log in, although it is known.");
}
