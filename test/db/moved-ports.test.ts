import { pino } from "pino";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { newId } from "../../src/core/ids.ts";
import { drizzle } from "../../src/db/drizzle.ts";
import { readContainer } from "../../src/db/inbox.ts";
import * as schema from "../../src/db/schema.ts";
import { Converger } from "../../src/engine/converge.ts";
import type { Services } from "../../src/engine/services.ts";
import { openHost } from "../support/host.ts";
import { createDatabase, type TestDatabase } from "../support/postgres.ts";

let database: TestDatabase;
let host: { id: string; session: number };
const projectId = newId("project");

beforeAll(async () => {
  database = await createDatabase(inject("postgresSocketDir"));
  host = await openHost(drizzle(database.owner, { schema }));
  await database.owner`insert into projects (id, name) values (${projectId}, 'p')`;
});
afterAll(() => database.drop());

async function running(): Promise<string> {
  const id = newId("container");
  await database.owner`
    insert into containers (id, project_id, host_id, name, spec, image_reference, cpus, memory, pids, disk, wanted, wanted_run, run, status)
    values (${id}, ${projectId}, ${host.id}, ${id.slice(4)}, '{}', 'web:1', 1, 1, 1, 1, 'running', 1, 1, 'running')`;
  return id;
}

test("a port that has moved stays led to its new container, though the old one's driver read its row before that", async () => {
  const [before, after, port] = [await running(), await running(), newId("port")];
  await database.owner`
    insert into ports (id, project_id, container_id, host_id, container_port, host_port, protocol, status)
    values (${port}, ${projectId}, ${before}, ${host.id}, 80, 8000, 'tcp', 'active')`;
  const stale = await readContainer(database.owner, host.id, before);
  await database.owner`update ports set container_id = ${after}, status = 'pending'`;
  /** Where the host leads the port, one publishing after the other. */
  const led: string[] = [];
  const services = {
    config: { failpoint: null },
    connection: await database.asHost(host.id),
    host,
    log: pino({ level: "silent" }),
    sandboxes: {
      probe: () => ({ state: "running" }),
      publish: (id: string) => Promise.resolve(void led.push(id)),
      unpublish: () => Promise.resolve(),
      setLimits: () => undefined,
    },
  };
  const converger = new Converger(services as unknown as Services, { rebooted: false });
  converger.wake(after);
  const status = async () => (await database.owner`select status from ports`)[0];
  await expect.poll(status).toEqual({ status: "active" });
  converger.wake(before, stale);
  await expect.poll(() => led).toEqual([after, before, after]);
  expect(await status()).toEqual({ status: "active" });
  converger.close();
});
