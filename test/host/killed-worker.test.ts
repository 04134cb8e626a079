import { afterAll, beforeAll, beforeEach, describe, expect, inject, test } from "vitest";
import { failpoints } from "../../src/isolation/failpoint.ts";
import { DrivenHost } from "../support/driven-host.ts";
import { leftovers } from "../support/leftovers.ts";

// A worker is killed between every two effects of a start, a stop and a removal, rows included; the next one must make
// the host and the rows agree again, with one instance of the container and nothing left of what is gone.

interface Container {
  id: string;
  status: string;
  exitCode: number | null;
  reason: string | null;
  restartCount: number;
  ports: { hostPort: number; status: string }[];
}

const page = "it answers";
let host: DrivenHost;

beforeAll(async () => {
  host = await DrivenHost.create(inject("postgresSocketDir"));
  await host.start();
  await host.buildBusybox("box:1");
});
afterAll(() => host.destroy());

beforeEach(async () => {
  await host.stop();
});

const web = {
  image: "box:1",
  command: ["/bin/sh", "-c", `mkdir /www; echo ${page} > /www/index.html; exec httpd -f -p 80 -h /www`],
  ports: [{ containerPort: 80 }],
  stopSignal: "SIGKILL",
};

async function create(): Promise<Container> {
  const { status, body } = await host.ask<Container>("POST", "/v1/containers", web);
  expect(status, JSON.stringify(body)).toBeLessThan(300);
  return body;
}

async function get(id: string): Promise<Container | null> {
  const { status, body } = await host.ask<Container>("GET", `/v1/containers/${id}`);
  return status === 404 ? null : body;
}

async function becomes(id: string, status: string): Promise<Container> {
  await expect.poll(async () => (await get(id))?.status, { timeout: 20_000 }).toBe(status);
  return (await get(id)) as Container;
}

const answer = (port: number) =>
  fetch(`http://127.0.0.1:${String(port)}/`).then(
    (response) => response.text(),
    (error: unknown) => String(error),
  );

/** Runs, once, and its port answers. */
async function serves(id: string): Promise<void> {
  const container = await becomes(id, "running");
  const port = container.ports[0]?.hostPort ?? 0;
  await expect.poll(() => answer(port), { timeout: 10_000 }).toContain(page);
  await expect.poll(async () => (await get(id))?.ports[0]?.status, { timeout: 10_000 }).toBe("active");
  expect(leftovers(host).filter((line) => line.includes("httpd"))).toHaveLength(1);
}

/** After a clean end of the worker only what rows stand for is left: the writable layers of containers that are stopped. */
async function leavesNothing(): Promise<void> {
  await host.stop();
  const [row] = await host.api.database.owner<{ disks: number }[]>`
    select count(*)::int disks from containers where slot is not null`;
  const left = leftovers(host);
  expect(left.filter((line) => !line.includes("/worker/disks/") && !line.includes("/worker/slot-logs/"))).toEqual([]);
  expect(left.filter((line) => line.includes("/worker/disks/"))).toHaveLength(row?.disks ?? 0);
}

async function remove(id: string): Promise<void> {
  await host.ask("DELETE", `/v1/containers/${id}?force=true`);
  await expect.poll(() => get(id), { timeout: 20_000 }).toBeNull();
}

const starting = failpoints.filter((name) =>
  /^(slot|create|start)\.|^converge\.(begun|started|published|running)$/.test(name),
);
const stopping = failpoints.filter((name) => /^release\.|^converge\.(stopping|asked|released|ended)$/.test(name));
const removing = failpoints.filter((name) => /^(remove)\.|^converge\.(removed|forgotten|erased)$/.test(name));

describe("a worker killed in a start", () => {
  test.each(starting)("at %s: the next one has it running once", async (name) => {
    await host.start(name);
    const { id } = await create();
    await host.killed();
    await host.start();
    await serves(id);
    expect((await get(id))?.restartCount).toBe(0);
    await remove(id);
    await leavesNothing();
  });
});

describe("a worker killed in a stop", () => {
  test.each(stopping)("at %s: the next one has it stopped, and it can start again", async (name) => {
    await host.start(name);
    const { id } = await create();
    await serves(id);
    await host.ask("POST", `/v1/containers/${id}/stop`);
    await host.killed();
    await host.start();
    await becomes(id, "exited");
    await expect.poll(async () => (await get(id))?.ports[0]?.status).toBe("pending");
    await host.ask("POST", `/v1/containers/${id}/start`);
    await serves(id);
    await remove(id);
    await leavesNothing();
  });
});

describe("a worker killed in a removal", () => {
  test.each(removing)("at %s: the next one removes the rest", async (name) => {
    await host.start(name);
    const { id } = await create();
    await serves(id);
    await host.ask("DELETE", `/v1/containers/${id}?force=true`);
    await host.killed();
    await host.start();
    await expect.poll(() => get(id), { timeout: 20_000 }).toBeNull();
    await leavesNothing();
  });
});

test("a database that crashes before a start's record is on disk is told of it again, and the container runs once", async () => {
  const { owner } = host.api.database;
  const lockId = 7_001;
  const waiting = async () => {
    const [row] = await owner<{ n: number }[]>`
      select count(*)::int n from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()`;
    return row?.n;
  };
  await owner.unsafe(`create function crash() returns trigger language plpgsql as $$ begin
      perform pg_advisory_xact_lock(${String(lockId)});
      raise exception 'the database goes down' using errcode = '57P01';
    end $$;
    create trigger crash before update on containers for each row when (new.status = 'running') execute function crash()`);
  const crashed = await owner.reserve();
  try {
    await crashed`select pg_advisory_lock(${lockId})`;
    await host.start();
    const id = "/proc/sys/kernel/random/uuid";
    const { body } = await host.ask<Container>("POST", "/v1/containers", {
      ...web,
      command: ["/bin/sh", "-c", `mkdir /www; cat ${id} > /www/index.html; exec httpd -f -p 80 -h /www`],
    });
    await expect.poll(waiting, { timeout: 20_000 }).toBe(1);
    const port = body.ports[0]?.hostPort ?? 0;
    await expect.poll(() => answer(port)).toMatch(/^[0-9a-f-]{36}$/m);
    const run = await answer(port);
    // As it was before the start's record, and that is what the database comes back with.
    const lost = owner`update containers set status = 'created', run = 0, slot = null, ip_address = null where id = ${body.id}`;
    const forgotten = lost.execute();
    await expect.poll(waiting).toBe(2);
    await crashed`select pg_advisory_unlock(${lockId})`;
    await forgotten;
    await owner`drop function crash cascade`;
    await becomes(body.id, "running");
    expect(await answer(port)).toBe(run);
    expect(leftovers(host).filter((line) => line.includes("httpd"))).toHaveLength(1);
    await remove(body.id);
    await leavesNothing();
  } finally {
    crashed.release();
    await owner`drop function if exists crash cascade`;
  }
});

test("every failpoint of containers belongs to one of the three", () => {
  const ofJobs = failpoints.filter((name) => /^(job|build)\./.test(name));
  expect([...starting, ...stopping, ...removing, ...ofJobs].toSorted()).toEqual(failpoints.toSorted());
});
