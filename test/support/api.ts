import { join } from "node:path";
import { pino } from "pino";
import { newId } from "../../src/core/ids.ts";
import { agentKey, hostKey, tokenHash } from "../../src/core/keys.ts";
import type { Role } from "../../src/core/roles.ts";
import { Wakeups } from "../../src/db/wakeups.ts";
import { FileBlobs } from "../../src/image/file-blobs.ts";
import { Agents } from "../../src/routes/agents.ts";
import { createApp } from "../../src/routes/app.ts";
import type { App, Services } from "../../src/routes/context.ts";
import { Repositories } from "../../src/routes/git/repositories.ts";
import { OpenStreams } from "../../src/routes/open-streams.ts";
import { TokenCache } from "../../src/routes/token-cache.ts";
import { Owned } from "./ownership.ts";
import { createDatabase, type TestDatabase } from "./postgres.ts";

const secretKey = "a secret key of the tests, long enough";

/** What the API shows the agent of a host. */
export const testAgentKey = (hostId: string) => agentKey(hostKey(secretKey, hostId));

/** A project of the test with one token of each role. */
export interface TestProject {
  id: string;
  name: string;
  tokens: Record<"admin" | "deployer" | "viewer", string>;
}

/** The API over a database of its own, without a network: `app.request()`. */
export interface TestApi {
  app: App;
  services: Services;
  database: TestDatabase;
  operator: string;
  /** Every record that the API logged. */
  logged: string[];
  project(name: string): Promise<TestProject>;
  host(more?: Partial<TestHost>): Promise<string>;
  close(): Promise<void>;
}

export interface TestHost {
  name: string;
  cpus: number;
  memory: number;
  disk: number;
  portFirst: number;
  portLast: number;
  reservedPorts: number[];
  agentUrl: string;
}

export async function createApi(socketDir: string, limits: Partial<Services["limits"]> = {}): Promise<TestApi> {
  const database = await createDatabase(socketDir);
  const owned = Owned.directory("berth-test-api-");
  const { directory } = owned.footprint;
  const wakeups = await Wakeups.open(database.api);
  const tokens = new TokenCache(database.api, wakeups);
  const all = { contextBytes: 16 * 1024 * 1024, heldRequests: 20, uploads: 20, ...limits };
  const logged: string[] = [];
  const services: Services = {
    sql: database.api,
    wakeups,
    tokens,
    blobs: new FileBlobs(join(directory, "blobs")),
    agents: new Agents(database.api, secretKey),
    repositories: new Repositories(join(directory, "git"), { repositoryBytes: 64 * 2 ** 20, packBytes: 8 * 2 ** 20 }),
    streams: new OpenStreams(wakeups, all.heldRequests, (principal) => tokens.stillValid(principal)),
    log: pino({ level: "debug" }, { write: (line: string) => void logged.push(line) }),
    secretKey,
    corsOrigins: ["https://console.example"],
    publicUrl: null,
    limits: all,
  };
  const insertToken = async (projectId: string | null, role: Role) => {
    const text = `berth_${role}${newId("token").slice(4)}`;
    await database.owner`
      insert into tokens (id, project_id, role, hash) values (${newId("token")}, ${projectId}, ${role}, ${tokenHash(text)})`;
    return text;
  };
  return {
    app: createApp(services),
    services,
    database,
    operator: await insertToken(null, "operator"),
    logged,
    async project(name) {
      const id = newId("project");
      await database.owner`insert into projects (id, name) values (${id}, ${name})`;
      const admin = await insertToken(id, "admin");
      const deployer = await insertToken(id, "deployer");
      const viewer = await insertToken(id, "viewer");
      return { id, name, tokens: { admin, deployer, viewer } };
    },
    async host(more = {}) {
      const id = newId("host");
      const host: TestHost = {
        name: id.slice(-8),
        cpus: 4,
        memory: 8 * 2 ** 30,
        disk: 100 * 2 ** 30,
        portFirst: 8000,
        portLast: 8099,
        reservedPorts: [7070],
        agentUrl: "unix:/nowhere",
        ...more,
      };
      await database.owner`
        insert into hosts (id, name, address, agent_url, cpus, memory, disk, port_first, port_last, reserved_ports, session)
        values (${id}, ${host.name}, '127.0.0.1', ${host.agentUrl}, ${host.cpus}, ${host.memory}, ${host.disk},
          ${host.portFirst}, ${host.portLast}, ${host.reservedPorts}, 1)`;
      return id;
    },
    async close() {
      services.streams.closeAll();
      services.agents.close();
      await wakeups.close();
      await database.drop();
      await owned.remove();
    },
  };
}

/** An answer with its parsed body; `T` is what the test expects of it. */
export interface Answer<T> {
  status: number;
  headers: Headers;
  body: T;
}

export interface Problem {
  code: string;
  detail: string;
  status: number;
  requestId: string;
  errors?: { pointer: string; detail: string }[];
  facts?: Record<string, string | number>;
}

/** Asks the API, with a JSON body when one is given. */
export async function ask<T>(
  app: App,
  token: string | null,
  method: string,
  path: string,
  body?: unknown,
  headers: Record<string, string> = {},
): Promise<Answer<T>> {
  const response = await app.request(path, {
    method,
    headers: {
      ...(token === null ? {} : { Authorization: `Bearer ${token}` }),
      ...(body === undefined ? {} : { "Content-Type": "application/json" }),
      ...headers,
    },
    ...(body === undefined ? {} : { body: typeof body === "string" ? body : JSON.stringify(body) }),
  });
  const text = await response.text();
  return { status: response.status, headers: response.headers, body: (text === "" ? null : JSON.parse(text)) as T };
}
