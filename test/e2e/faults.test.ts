import { randomInt } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import postgres from "postgres";
import { afterAll, beforeAll, expect, test } from "vitest";
import { driverOptions } from "../../src/db/client.ts";
import { writeTar } from "../../src/image/tar-write.ts";
import { Instance, processes, type Run } from "../support/berth.ts";
import { collect, entry } from "../support/image.ts";
import { violations } from "../support/invariants.ts";

// Processes of a running instance are killed while it works. Clients try again as they are told to; everything that was
// answered holds, and afterwards rows and host agree.

interface Resource {
  id: string;
  status: string;
  ports: { hostPort: number }[];
}
interface Answer {
  status: number;
  body: Resource & { items: Resource[]; code?: string };
  headers: Headers;
}

const httpd = "mkdir -p /www; echo it answers > /www/index.html; exec httpd -f -p 80 -h /www";
let berth: Instance;
let run: Run;

beforeAll(async () => {
  berth = Instance.create();
  run = berth.start();
  await run.until(/^Ready/m);
  const dockerfile = 'FROM scratch\nCOPY busybox /bin/busybox\nRUN ["/bin/busybox","--install","-s","/bin"]\n';
  const busybox = entry("busybox", { content: readFileSync("/bin/busybox"), mode: 0o755 });
  const build = await send("POST", "/v1/builds?tag=box:1", await tar(dockerfile, [busybox]), { prefer: "wait=60" });
  expect(build.body.status).toBe("succeeded");
});
afterAll(() => berth.destroy());

const tar = (dockerfile: string, more: ReturnType<typeof entry>[] = []): Promise<Buffer> =>
  collect(writeTar([entry("Dockerfile", { content: dockerfile }), ...more]));

/** One request; it throws when there is no whole answer. */
async function send(
  method: string,
  path: string,
  body?: unknown,
  headers: Record<string, string> = {},
): Promise<Answer> {
  const response = await fetch(`${berth.url}${path}`, {
    method,
    headers: {
      authorization: `Bearer ${berth.token}`,
      ...(body === undefined
        ? {}
        : { "content-type": Buffer.isBuffer(body) ? "application/x-tar" : "application/json" }),
      ...headers,
    },
    ...(body === undefined ? {} : { body: Buffer.isBuffer(body) ? new Uint8Array(body) : JSON.stringify(body) }),
  });
  const text = await response.text();
  return {
    status: response.status,
    body: (text === "" ? {} : JSON.parse(text)) as Answer["body"],
    headers: response.headers,
  };
}

/** A request as a good client sends it: again, with the same Idempotency-Key, until it is answered for good. */
async function ask(method: string, path: string, body?: unknown): Promise<Answer> {
  const key = `key-${String(randomInt(2 ** 40))}`;
  const deadline = performance.now() + 60_000;
  for (;;) {
    const answer = await send(method, path, body, method === "GET" ? {} : { "idempotency-key": key }).catch(() => null);
    if (answer !== null && answer.status < 500) return answer;
    if (performance.now() > deadline) throw new Error(`${method} ${path} is not answered`);
    await sleep(100);
  }
}

const get = async (path: string) => (await ask("GET", path)).body;
const becomes = (path: string, status: string) =>
  expect.poll(async () => (await get(path)).status, { timeout: 60_000 }).toBe(status);

const victims = {
  api: () => firstNumber(join(berth.config.runDir, "api.pid")),
  worker: () => firstNumber(join(berth.config.runDir, "worker.pid")),
  database: () => firstNumber(join(berth.config.dataDir, "db/data/postmaster.pid")),
};
const firstNumber = (file: string) => Number(/^\d+/.exec(readFileSync(file, "utf8"))?.[0]);
/** False: it was not running, as it was killed a moment ago. */
function kill(victim: keyof typeof victims): boolean {
  try {
    return process.kill(victims[victim](), "SIGKILL");
  } catch (error) {
    if (error instanceof Error && "code" in error && ["ESRCH", "ENOENT"].includes(String(error.code))) return false;
    throw error;
  }
}

/** Keeps asking a container's port until told to stop; then the number of requests that were not answered. */
function keepAsking(port: number): () => Promise<{ asked: number; failed: number }> {
  const stop = new AbortController();
  const count = { asked: 0, failed: 0 };
  const asking = (async () => {
    while (!stop.signal.aborted) {
      const text = await fetch(`http://127.0.0.1:${String(port)}/`, { headers: { connection: "close" } }).then(
        (response) => response.text(),
        () => "",
      );
      count.asked++;
      if (!text.includes("it answers")) count.failed++;
      await sleep(25);
    }
  })();
  return async () => {
    stop.abort();
    await asking;
    return count;
  };
}

async function serving(): Promise<Resource> {
  const ports = [{ containerPort: 80 }];
  const { body } = await ask("POST", "/v1/containers", { image: "box:1", command: ["/bin/sh", "-c", httpd], ports });
  await becomes(`/v1/containers/${body.id}`, "running");
  const port = body.ports[0]?.hostPort ?? 0;
  await expect
    .poll(() =>
      fetch(`http://127.0.0.1:${String(port)}/`).then(
        (r) => r.status,
        () => 0,
      ),
    )
    .toBe(200);
  return body;
}

const slowly = (name: string) =>
  tar(`FROM box:1\nRUN for i in $(seq 30); do echo ${name} $i; sleep 0.1; done\nRUN echo ${name} > /end\n`);

/** Waits until the build's log has this line. */
async function logged(id: string, line: string): Promise<void> {
  await expect
    .poll(async () => {
      const response = await fetch(`${berth.url}/v1/builds/${id}/logs`, {
        headers: { authorization: `Bearer ${berth.token}` },
      }).catch(() => null);
      return (await response?.text()) ?? "";
    })
    .toContain(line);
}

/**
 * Compares rows with the host. A supervisor that is killed leaves the database running and makes API and worker end as
 * they should; the next one takes the database over.
 */
async function holds(): Promise<void> {
  const path = join(berth.config.runDir, "db/.s.PGSQL.5432");
  const sql = postgres({ path, username: "berth_owner", database: "berth", max: 1, ...driverOptions });
  const moving = () => sql`select id from containers where wanted_rev <> seen_rev`;
  await expect.poll(moving, { timeout: 30_000 }).toHaveLength(0);
  const ending = [victims.api(), victims.worker()];
  await run.stop("SIGKILL");
  await expect.poll(() => processes().filter(({ pid }) => ending.includes(pid)), { timeout: 30_000 }).toEqual([]);
  expect(await violations({ sql, config: berth.config })).toEqual([]);
  await sql.end();
  run = berth.start();
  await run.until(/^Ready/m);
}

test("Postgres killed in the middle of a build and of a start: both go on, and nobody else is started anew", async () => {
  const server = await serving();
  const stopAsking = keepAsking(server.ports[0]?.hostPort ?? 0);
  const before = [victims.api(), victims.worker()];
  for (const delay of [0, 30, 150]) {
    const build = (await ask("POST", "/v1/builds?tag=slow:1", await slowly(`after ${String(delay)} ms`))).body;
    await logged(build.id, " 5\n");
    const started = ask("POST", "/v1/containers", { image: "box:1", command: ["sleep", "1000"] });
    await sleep(delay);
    expect(kill("database")).toBe(true);
    const container = (await started).body;
    await becomes(`/v1/containers/${container.id}`, "running");
    await becomes(`/v1/builds/${build.id}`, "succeeded");
    await ask("DELETE", `/v1/containers/${container.id}?force=true`);
  }
  expect([victims.api(), victims.worker()]).toEqual(before);
  const { asked, failed } = await stopAsking();
  expect(asked).toBeGreaterThan(20);
  expect(failed).toBe(0);
  await ask("DELETE", `/v1/containers/${server.id}?force=true`);
  await expect.poll(async () => (await get("/v1/containers")).items, { timeout: 30_000 }).toEqual([]);
  await holds();
});

test("a worker killed in the middle of a build and of a start: its successor goes on with both", async () => {
  const server = await serving();
  const stopAsking = keepAsking(server.ports[0]?.hostPort ?? 0);
  const build = (await ask("POST", "/v1/builds?tag=slow:1", await slowly("worker"))).body;
  await logged(build.id, " 5\n");
  const container = (await ask("POST", "/v1/containers", { image: "box:1", command: ["sleep", "1000"] })).body;
  expect(kill("worker")).toBe(true);
  await becomes(`/v1/builds/${build.id}`, "succeeded");
  await becomes(`/v1/containers/${container.id}`, "running");
  expect((await stopAsking()).failed).toBe(0);
  await holds();
});

test("an API killed between its commit and its answer: the same key gets the same build, and there is one", async () => {
  const key = { "idempotency-key": "asked-twice" };
  const context = await slowly("once");
  const lost = send("POST", "/v1/builds?tag=once:1", context, { ...key, prefer: "wait=60" });
  const outcome = lost.then(
    () => "answered",
    () => "lost",
  );
  const known = async () => (await get("/v1/builds?tag=once:1")).items.map(({ id }) => id);
  await expect.poll(known).toHaveLength(1);
  expect(kill("api")).toBe(true);
  expect(await outcome).toBe("lost");
  let again: Answer | null = null;
  await expect
    .poll(
      async () => {
        again = await send("POST", "/v1/builds?tag=once:1", context, key).catch(() => null);
        return again?.status;
      },
      { timeout: 30_000 },
    )
    .toBe(202);
  const answered = again as unknown as Answer;
  expect(answered.headers.get("idempotency-replayed")).toBe("true");
  expect([answered.body.id]).toEqual(await known());
  await becomes(`/v1/builds/${answered.body.id}`, "succeeded");
  await holds();
});

test("killed at random under a mixed load, seeded", async () => {
  const seed = Number(process.env.BERTH_TEST_SEED ?? randomInt(2 ** 31));
  console.log(`BERTH_TEST_SEED=${String(seed)}`);
  const random = randomFrom(seed);
  const pick = <T>(from: readonly T[]): T => from[Math.floor(random() * from.length)] as T;
  const containers: string[] = [];
  const builds: string[] = [];
  const act = {
    create: async () => {
      const command = ["/bin/sh", "-c", pick([httpd, "sleep 1000", "exit 3"])];
      const ports = [{ containerPort: 80 }];
      const restartPolicy = { name: pick(["no", "always"]) };
      const { status, body } = await ask("POST", "/v1/containers", { image: "box:1", command, ports, restartPolicy });
      expect(status, JSON.stringify(body)).toBeLessThan(300);
      containers.push(body.id);
    },
    build: async () => {
      const { status, body } = await ask("POST", "/v1/builds?tag=mixed:1", await slowly(String(random())));
      expect(status, JSON.stringify(body)).toBeLessThan(300);
      builds.push(body.id);
    },
    cancel: async () => {
      if (builds.length > 0) await ask("POST", `/v1/builds/${pick(builds)}/cancel`);
    },
    stop: async () => {
      if (containers.length > 0) await ask("POST", `/v1/containers/${pick(containers)}/stop`);
    },
    start: async () => {
      if (containers.length > 0) await ask("POST", `/v1/containers/${pick(containers)}/start`);
    },
    remove: async () => {
      if (containers.length > 0) await ask("DELETE", `/v1/containers/${pick(containers)}?force=true`);
    },
  };
  for (let round = 0; round < 6; round++) {
    const acts = [
      act.create(),
      pick([act.build, act.create])(),
      pick(Object.values(act))(),
      pick(Object.values(act))(),
    ];
    await sleep(random() * 1500);
    kill(pick(Object.keys(victims) as (keyof typeof victims)[]));
    await Promise.all(acts);
  }
  // Those that are being removed can't be stopped any more.
  for (const id of containers)
    expect([200, 202, 404, 409]).toContain((await ask("POST", `/v1/containers/${id}/stop`)).status);
  const moving = async () => {
    const resources = [...containers.map((id) => `/v1/containers/${id}`), ...builds.map((id) => `/v1/builds/${id}`)];
    const seen = await Promise.all(resources.map((path) => ask("GET", path)));
    const ends = ["created", "exited", "failed", "succeeded", "cancelled"];
    return seen.filter(({ status, body }) => status !== 404 && !ends.includes(body.status)).map(({ body }) => body);
  };
  await expect.poll(moving, { timeout: 90_000 }).toEqual([]);
  await holds();
});

/** Numbers from 0 to 1 that follow from the seed (mulberry32). */
function randomFrom(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}
