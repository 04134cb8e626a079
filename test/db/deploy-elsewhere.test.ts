import { afterAll, beforeAll, expect, inject, test } from "vitest";
import type { DeployTemplate } from "../../src/core/deploy.ts";
import { newId } from "../../src/core/ids.ts";
import type { Connection } from "../../src/db/connect.ts";
import { drizzle } from "../../src/db/drizzle.ts";
import { eraseContainer, readInbox, writeHealth, writePorts, writeSeen } from "../../src/db/inbox.ts";
import { claimJobs, settleJobs } from "../../src/db/leases.ts";
import * as schema from "../../src/db/schema.ts";
import { topics, Wakeups } from "../../src/db/wakeups.ts";
import { deploy } from "../../src/engine/jobs/deploy.ts";
import type { Services } from "../../src/engine/services.ts";
import { openHost } from "../support/host.ts";
import { createDatabase, type TestDatabase } from "../support/postgres.ts";

// A deployment is driven by whichever host has claimed its job: here by one that is not its containers'.
let database: TestDatabase;
let driver: { id: string; connection: Connection };
let home: { id: string; session: number; connection: Connection };
let wakeups: Wakeups;
const projectId = newId("project");
const sourceId = newId("source");

const template: DeployTemplate = {
  ...{ cpus: 1, memory: 1_000, pids: 10, disk: 1_000, labels: {} },
  spec: {
    ...{ env: {}, ports: [{ containerPort: 8080, protocol: "tcp" }], publishAll: false, placement: { host: "home" } },
  } as unknown as DeployTemplate["spec"],
};

beforeAll(async () => {
  database = await createDatabase(inject("postgresSocketDir"));
  const { owner } = database;
  const db = drizzle(owner, { schema });
  const [one, two] = [await openHost(db), await openHost(db, { name: "home", agentUrl: "unix:/home" })];
  driver = { id: one.id, connection: await database.asHost(one.id) };
  home = { ...two, connection: await database.asHost(two.id) };
  wakeups = await Wakeups.open(database.api);
  await owner`insert into projects (id, name) values (${projectId}, 'p')`;
  await owner`insert into sources (id, project_id, name, provider, build, deploy, secret_sealed)
    values (${sourceId}, ${projectId}, 'web', 'berth', '{}', ${JSON.stringify(template)}::text::jsonb, '')`;
});
afterAll(async () => {
  await wakeups.close();
  await database.drop();
});

/** Does at once what is wanted of the home's containers, as its worker. */
async function serve(): Promise<void> {
  const { sql } = home.connection;
  const fence = { hostId: home.id, session: home.session };
  for (const container of await readInbox(sql, home.id)) {
    const { wanted, wantedRun: run, wantedRev: seenRev, ports } = container;
    if (wanted === "running") {
      await writeSeen(sql, fence, container, { status: "running", run, seenRev, started: true });
      await writeHealth(sql, fence, { id: container.id, run }, "healthy", null);
      await writePorts(sql, fence, container, { active: ports.map(({ id }) => id) });
    } else if (wanted === "stopped") {
      await writeSeen(sql, fence, container, { status: "exited", seenRev, exitCode: 0, finished: true });
    } else {
      await eraseContainer(sql, fence, container);
    }
  }
}

/** Builds the source once more on the driver, and takes the deployment of it through there. */
async function deployed(digest: string): Promise<unknown> {
  const { owner } = database;
  const { sql } = driver.connection;
  const [buildId, jobId] = [newId("build"), newId("job")];
  await owner`insert into images (project_id, digest, media_type, manifest, config, layers, size_bytes)
    values (${projectId}, ${digest}, 'm', '{}', '{}', '[]', 1)`;
  await owner`insert into jobs (id, project_id, kind, subject_id, payload) values (${jobId}, ${projectId}, 'build', ${buildId}, '{}')`;
  await owner`insert into builds (id, project_id, job_id, source_id, image_digest, request)
    values (${buildId}, ${projectId}, ${jobId}, ${sourceId}, ${digest}, '{}')`;
  const claim = async (kind: "build" | "deploy") => {
    const [job] = await claimJobs(sql, driver.id, { kinds: { [kind]: 1 }, suspect: true });
    if (job === undefined) throw new Error("nothing to claim");
    return job;
  };
  await settleJobs(sql, [{ job: await claim("build"), outcome: { status: "succeeded", result: {} } }]);
  const job = await claim("deploy");
  const services = { connection: driver.connection, wakeups, host: { id: driver.id }, config: { dataDir: "/nowhere" } };
  const result = await deploy(job, services as unknown as Services, AbortSignal.timeout(10_000), () => undefined);
  await settleJobs(sql, [{ job, outcome: { status: "succeeded", result: {} } }]);
  return result;
}

/** Has the home do something each time that it is woken, once after the other. */
function atHome(work: () => Promise<void>): { failures: unknown[]; end: () => Promise<void> } {
  const failures: unknown[] = [];
  let done = Promise.resolve();
  const unsubscribe = wakeups.subscribe(topics.host(home.id), () => {
    done = done.then(work).catch((error: unknown) => void failures.push(error));
  });
  return {
    failures,
    end: () => {
      unsubscribe();
      return done;
    },
  };
}

const ports = () =>
  database.owner<
    { containerId: string; hostPort: number; status: string }[]
  >`select container_id as "containerId", host_port as "hostPort", status from ports`;

test("it makes the container there, leads the ports of the one before to it, and has that one removed", async () => {
  const serving = atHome(serve);
  const first = (await deployed("sha256:1")) as { containerId: string };
  expect(first).toMatchObject({ status: "succeeded" });
  const [port] = await ports();
  expect(port).toMatchObject({ containerId: first.containerId, status: "active" });

  const second = (await deployed("sha256:2")) as { containerId: string };
  expect(second).toMatchObject({ status: "succeeded" });
  await serving.end();
  expect([...(await ports())]).toEqual([
    { containerId: second.containerId, hostPort: port?.hostPort, status: "active" },
  ]);
  const containers =
    await database.owner`select id, host_id as "hostId", name from containers where wanted <> 'removed'`;
  expect([...containers]).toEqual([{ id: second.containerId, hostId: home.id, name: "web" }]);
  expect(serving.failures).toEqual([]);
});

test("it does not wait for ever for a host that goes away with the switch, which does all of it when it is back", async () => {
  const { owner } = database;
  const before = (await ports())[0]?.containerId;
  // As of a host that is away: from the switch on it does nothing, and time passes.
  const away = atHome(async () => {
    const switched = await owner`
      update deployments set moved_at = now() - interval '6 minutes'
      where finished_at is null and status = 'switching' or finished_at > now() - interval '1 minute' and reason is not null
      returning pg_notify('berth', id)`;
    if (switched.length === 0) await serve();
  });
  const { containerId } = (await deployed("sha256:3")) as { containerId: string };
  await away.end();
  expect(away.failures).toEqual([]);
  const [told] = await owner`select status, reason, detail from deployments where container_id = ${containerId}`;
  expect(told).toMatchObject({ status: "succeeded", reason: "host_unavailable" });
  expect(await ports()).toMatchObject([{ containerId, status: "pending" }]);
  const left = () => owner`select id, wanted from containers where host_id = ${home.id} order by created_at`;
  expect(await left()).toMatchObject([
    { id: before, wanted: "removed" },
    { id: containerId, wanted: "running" },
  ]);

  await serve();
  expect(await ports()).toMatchObject([{ containerId, status: "active" }]);
  expect(await left()).toMatchObject([{ id: containerId }]);
});
