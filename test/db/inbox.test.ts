import { afterAll, beforeAll, describe, expect, inject, it } from "vitest";
import { newId } from "../../src/core/ids.ts";
import type { Db } from "../../src/db/connect.ts";
import { drizzle } from "../../src/db/drizzle.ts";
import { eraseContainer, type Fence, readContainer, readInbox, writePorts, writeSeen } from "../../src/db/inbox.ts";
import * as schema from "../../src/db/schema.ts";
import type { Pool } from "../../src/db/scope.ts";
import { Wakeups } from "../../src/db/wakeups.ts";
import { openHost } from "../support/host.ts";
import { createDatabase, type TestDatabase } from "../support/postgres.ts";

describe("the inbox of a host", () => {
  let database: TestDatabase;
  let db: Db;
  let worker: Pool;
  let fence: Fence;
  const projectId = newId("project");

  beforeAll(async () => {
    database = await createDatabase(inject("postgresSocketDir"));
    db = drizzle(database.owner, { schema });
    const host = await openHost(db);
    fence = { hostId: host.id, session: host.session };
    worker = (await database.asHost(host.id)).sql;
    await database.owner`insert into projects (id, name) values (${projectId}, 'p')`;
  });
  afterAll(() => database.drop());

  const create = async () => {
    const id = newId("container");
    await database.owner`insert into containers
      (id, project_id, host_id, name, spec, image_reference, cpus, memory, pids, disk, wanted, wanted_run)
      values (${id}, ${projectId}, ${fence.hostId}, ${id.slice(4)}, '{}', 'web:1', 1, 1000000, 10, 1000000, 'running', 1)`;
    return { id, projectId };
  };
  const events = async (subject: string) =>
    (await database.owner`select type, data from events where subject_id = ${subject} order by id`).map((e) => ({
      ...e,
    }));

  it("holds a container until its wish was settled", async () => {
    const container = await create();
    const found = (await readInbox(worker, fence.hostId)).find((each) => each.id === container.id);
    expect(found).toMatchObject({
      wanted: "running",
      wantedRev: 1,
      seenRev: 0,
      image: null,
      ports: [],
      memory: 1000000,
    });
    expect(await writeSeen(worker, fence, container, { seenRev: 1, status: "running", started: true })).toBe(true);
    expect((await readInbox(worker, fence.hostId)).some((each) => each.id === container.id)).toBe(false);
  });

  it("shows the newest wish, however many older ones are still under way", async () => {
    await database.owner`
      insert into containers (id, project_id, host_id, name, spec, image_reference, cpus, memory, pids, disk, wanted, created_at)
      select 'ctr_old' || n, ${projectId}, ${fence.hostId}, 'old' || n, '{}', 'slow:1', 1, 1, 1, 1, 'running', now() - interval '1 hour'
      from generate_series(1, 700) n`;
    const { id } = await create();
    expect((await readInbox(worker, fence.hostId)).map((each) => each.id)).toContain(id);
    await database.owner`delete from containers where image_reference = 'slow:1'`;
  });

  it("writes the row and its event together and wakes those who wait", async () => {
    const container = await create();
    const wakeups = await Wakeups.open(database.owner);
    const woken = new Promise<void>((resolve) => wakeups.subscribe(container.id, resolve));
    const data = { exitCode: 3 };
    await writeSeen(
      worker,
      fence,
      container,
      { status: "exited", exitCode: 3, finished: true },
      { type: "container.exited", data },
    );
    await woken;
    await wakeups.close();
    expect(await events(container.id)).toEqual([{ type: "container.exited", data }]);
  });

  it("delivers only the signals that were read", async () => {
    const container = await create();
    await database.owner`update containers set signals = '{1,15,9}' where id = ${container.id}`;
    await writeSeen(worker, fence, container, { signalsDelivered: 2 });
    expect((await readContainer(worker, fence.hostId, container.id))?.signals).toEqual([9]);
  });

  it("changes no row of a newer session", async () => {
    const container = await create();
    const old = fence;
    fence = { hostId: old.hostId, session: (await openHost(db)).session };
    expect(await writeSeen(worker, old, container, { status: "running" }, { type: "container.started" })).toBe(false);
    expect(await eraseContainer(worker, old, container)).toBe(false);
    expect(await events(container.id)).toEqual([]);
    expect((await readContainer(worker, fence.hostId, container.id))?.status).toBe("created");
  });

  it("applies, idles and refuses ports, and lets them go with the container", async () => {
    const container = await create();
    const [a, b] = [newId("port"), newId("port")];
    for (const [id, port] of [
      [a, 8001],
      [b, 8002],
    ] as const) {
      await database.owner`insert into ports (id, project_id, container_id, host_id, container_port, host_port, protocol)
        values (${id}, ${projectId}, ${container.id}, ${fence.hostId}, 80, ${port}, 'tcp')`;
    }
    const refused = [{ id: b, reason: "host_port_in_use", detail: "nginx (pid 7) has it" }];
    await writePorts(worker, fence, container, { active: [a], refused });
    expect((await readContainer(worker, fence.hostId, container.id))?.ports).toEqual([
      { id: a, containerPort: 80, hostPort: 8001, protocol: "tcp", hostAddress: null, status: "active" },
    ]);
    expect(await events(b)).toEqual([{ type: "port.refused", data: refused[0] }]);
    const other = await create();
    expect(await writePorts(worker, fence, other, { idle: [a], gone: [a] })).toEqual([container.id]);
    expect((await readContainer(worker, fence.hostId, container.id))?.ports[0]?.status).toBe("active");
    expect(await writePorts(worker, fence, container, { idle: [a] })).toEqual([]);
    expect((await readContainer(worker, fence.hostId, container.id))?.ports[0]?.status).toBe("pending");
    expect(await eraseContainer(worker, fence, container)).toBe(true);
    expect(await database.owner`select from ports where id = ${a}`).toHaveLength(0);
    expect(await events(container.id)).toEqual([{ type: "container.removed", data: {} }]);
  });
});
