import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { newId } from "../../src/core/ids.ts";
import { tokenHash } from "../../src/core/keys.ts";
import { freePort } from "../support/ownership.ts";
import { createDatabase, startPostgres } from "../support/postgres.ts";
import { Client } from "./http.ts";
import { quantile, type Row } from "./table.ts";

const clients = 8;
const seconds = 4;
const root = new URL("../..", import.meta.url).pathname;

/** One API process on a durable Postgres, asked by HTTP: the clients take a part of the same two cores. */
export async function measureApi(): Promise<Row[]> {
  const server = await startPostgres({ durable: true });
  const database = await createDatabase(server.socketDir);
  const dataDir = await mkdtemp(join(tmpdir(), "berth-bench-api-"));
  const [projectId, token] = [newId("project"), "berth_bench_token_of_the_project"];
  const { owner } = database;
  const port = freePort();
  await owner`
    insert into projects (id, name, max_containers, max_cpus) values (${projectId}, 'bench', 1000000, 1000000)`;
  await owner`
    insert into tokens (id, project_id, role, hash) values (${newId("token")}, ${projectId}, 'deployer', ${tokenHash(token)})`;
  await owner`
    insert into hosts (id, name, address, agent_url, session, cpus, memory, disk, port_first, port_last)
    values (${newId("host")}, 'bench', '127.0.0.1', '', 1, 1000000, 1e15, 1e15, 1, 2)`;
  const api = spawn(process.execPath, [`${root}src/api.ts`], {
    env: {
      ...process.env,
      BERTH_ROLE: "api",
      BERTH_DATA_DIR: dataDir,
      BERTH_LISTEN: `127.0.0.1:${String(port)}`,
      BERTH_DATABASE_URL: `postgres://postgres@${encodeURIComponent(server.socketDir)}/${database.name}`,
      BERTH_SECRET_KEY: "a secret key of the benchmark, long enough",
    },
    stdio: ["ignore", "inherit", "inherit"],
  });
  const client = new Client({ host: "127.0.0.1", port }, { authorization: `Bearer ${token}` });
  try {
    for (;;) {
      const ready = await client.send("GET", "/readyz").catch(() => null);
      if (ready?.status === 200) break;
      await sleep(50);
    }
    const create = () =>
      client.json<{ id: string }>("POST", "/v1/containers", {
        image: "registry.example/web:1",
        resources: { cpus: 1 },
      });
    const { id } = await create();
    const get = () => client.json("GET", `/v1/containers/${id}`);
    await load(get, 2);
    const gets = await load(get, seconds);
    const before = await residentKb(api.pid ?? 0);
    const posts = await load(create, seconds);
    await load(get, seconds);
    const after = await residentKb(api.pid ?? 0);
    const row = (work: string, unit: string, ours: number, goal: string): Row => ({
      work,
      unit,
      ours,
      peer: null,
      more: unit === "/s",
      goal,
    });
    return [
      row(`GET /v1/containers/{id}, ${String(clients)} clients`, "/s", gets.perSecond, "≥ 5,000 /s"),
      row("the same, p99", "ms", gets.p99, "≤ 10 ms"),
      row(`POST /v1/containers, ${String(clients)} clients`, "/s", posts.perSecond, ""),
      row("the same, p99", "ms", posts.p99, ""),
      row("API's memory after the load (RSS)", "kB", after, "no more than before"),
      row("the same, before the POSTs", "kB", before, ""),
    ];
  } finally {
    client.close();
    api.kill("SIGTERM");
    await once(api, "exit");
    await database.drop();
    await server.stop();
    await rm(dataDir, { recursive: true, force: true });
  }
}

/** Asks from all clients, each again when it was answered, for so many seconds. */
async function load(ask: () => Promise<unknown>, forSeconds: number): Promise<{ perSecond: number; p99: number }> {
  const times: number[] = [];
  const end = performance.now() + forSeconds * 1000;
  const client = async () => {
    while (performance.now() < end) {
      const began = performance.now();
      await ask();
      times.push(performance.now() - began);
    }
  };
  await Promise.all(Array.from({ length: clients }, client));
  return { perSecond: times.length / forSeconds, p99: quantile(times, 0.99) };
}

async function residentKb(pid: number): Promise<number> {
  const text = await readFile(`/proc/${String(pid)}/status`, "utf8");
  return Number(/^VmRSS:\s+(\d+)/m.exec(text)?.[1]);
}
