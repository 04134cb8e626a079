import { once } from "node:events";
import { readdirSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, afterEach, beforeAll, expect, inject, test } from "vitest";
import { writeTar } from "../../src/image/tar-write.ts";
import { DrivenHost } from "../support/driven-host.ts";
import { collect, entry } from "../support/image.ts";
import { violations } from "../support/invariants.ts";
import { leftovers } from "../support/leftovers.ts";

// Cancelling ends whatever a job is doing, within a second, and leaves nothing of it.

let host: DrivenHost;
/** Takes requests and never answers, as a registry that hangs. */
const silent = createServer(() => undefined);

beforeAll(async () => {
  silent.listen(0, "127.0.0.1");
  await once(silent, "listening");
  const { port } = silent.address() as AddressInfo;
  host = await DrivenHost.create(inject("postgresSocketDir"), {
    BERTH_INSECURE_REGISTRIES: `127.0.0.1:${String(port)}`,
    BERTH_OUTBOUND_ALLOW: "127.0.0.0/8",
  });
  await host.start();
  await host.buildBusybox("box:1");
});
afterEach(async () => {
  await host.stop();
  expect(await violations({ sql: host.api.database.owner, config: host.config })).toEqual([]);
  await host.start();
});
afterAll(async () => {
  silent.closeAllConnections();
  silent.close();
  await host.stop();
  await host.destroy();
});

interface Job {
  id: string;
  status: string;
}

/** Milliseconds between the request and the end of the job, both as the database noted them. */
async function cancelled(path: string): Promise<number> {
  await host.ask<Job>("POST", `${path}/cancel`);
  await expect
    .poll(async () => (await host.ask<Job>("GET", path)).body.status, { interval: 20, timeout: 20_000 })
    .toBe("cancelled");
  const [row] = await host.api.database.owner<{ ms: number }[]>`
    select (extract(epoch from finished_at - at) * 1000)::float8 ms from jobs j
      join events e on e.subject_id = j.id and e.type = 'job.cancel_requested'
    where ${path.slice(path.lastIndexOf("/") + 1)} in (j.id, j.subject_id)`;
  return row?.ms ?? Number.NaN;
}

async function build(dockerfile: string): Promise<string> {
  const tar = await collect(writeTar([entry("Dockerfile", { content: dockerfile })]));
  const response = await host.api.app.request("/v1/builds?tag=never:1", {
    method: "POST",
    headers: { authorization: `Bearer ${host.project.tokens.admin}`, "content-type": "application/x-tar" },
    body: tar,
  });
  return ((await response.json()) as Job).id;
}

const programs = (text: string) => leftovers(host).filter((line) => line.startsWith("process ") && line.includes(text));

test("a step's program, however it resists", async () => {
  const id = await build("FROM box:1\nRUN trap '' TERM INT HUP; (sleep 3599 &) ; sleep 3600\n");
  await expect.poll(() => programs("sleep 3600"), { timeout: 20_000 }).toHaveLength(1);
  expect(await cancelled(`/v1/builds/${id}`)).toBeLessThan(1000);
  expect([...programs("sleep 3600"), ...programs("sleep 3599")]).toEqual([]);
});

test("steps side by side, of stages that wait for each other", async () => {
  const id = await build(
    "FROM box:1 AS a\nRUN sleep 3601\nFROM box:1 AS b\nRUN sleep 3602\nFROM box:1\nCOPY --from=a /bin /a\nCOPY --from=b /bin /b\n",
  );
  await expect.poll(() => programs("sleep 360"), { timeout: 20_000 }).not.toEqual([]);
  expect(await cancelled(`/v1/builds/${id}`)).toBeLessThan(1000);
  expect(programs("sleep 360")).toEqual([]);
});

test("a layer that is being made of what a step wrote", async () => {
  const id = await build("FROM box:1\nRUN dd if=/dev/urandom of=/large bs=1M count=400 2>/dev/null; echo written\n");
  const making = async () => {
    const rows = await host.api.database.owner`select 1 from build_logs where build_id = ${id} and text = 'written'`;
    return rows.length > 0 && readdirSync(`${host.config.dataDir}/blobs/tmp`).length > 0;
  };
  await expect.poll(making, { timeout: 30_000, interval: 10 }).toBe(true);
  expect(await cancelled(`/v1/builds/${id}`)).toBeLessThan(1000);
  expect(readdirSync(`${host.config.dataDir}/blobs/tmp`)).toEqual([]);
});

test("a pull, a push and a base image from a registry that hangs", async () => {
  const { port } = silent.address() as AddressInfo;
  const name = `127.0.0.1:${String(port)}/x:1`;
  const asked = once(silent, "request");
  const pull = (await host.ask<Job>("POST", "/v1/images/pull", { reference: name })).body;
  await asked;
  expect(await cancelled(`/v1/jobs/${pull.id}`)).toBeLessThan(1000);

  const again = once(silent, "request");
  const push = (await host.ask<Job>("POST", "/v1/images/push", { reference: "box:1", destination: name })).body;
  await again;
  expect(await cancelled(`/v1/jobs/${push.id}`)).toBeLessThan(1000);

  const third = once(silent, "request");
  const based = await build(`FROM ${name}\nRUN true\n`);
  await third;
  expect(await cancelled(`/v1/builds/${based}`)).toBeLessThan(1000);
});

test("a worker that was stopped beyond its lease writes nothing when it goes on", async () => {
  const id = await build("FROM box:1\nRUN echo begun; sleep 2; echo ended\n");
  const { owner } = host.api.database;
  const lines = async () =>
    (await owner`select text from build_logs where build_id = ${id} order by seq`).map((r) => r["text"] as string);
  await expect.poll(lines, { timeout: 20_000 }).toContain("begun");
  host.signal("SIGSTOP");
  // As another host does when the lease has run out: the job is taken over, and ended.
  await owner`
    with taken as (
      update jobs set epoch = epoch + 1, status = 'cancelled', finished_at = now()
      where id = (select job_id from builds where id = ${id}) returning id, project_id)
    insert into events (project_id, type, subject_id) select project_id, 'build.cancelled', ${id} from taken`;
  await owner`update builds set status = 'cancelled' where id = ${id}`;
  const before = await lines();
  host.signal("SIGCONT");
  await expect.poll(() => programs("sleep 2"), { timeout: 20_000 }).toEqual([]);
  // Its next look at its leases tells it, a second later at most.
  await sleep(2000);
  expect(await lines()).toEqual(before);
  const [row] = await owner`select status, image_digest from builds where id = ${id}`;
  expect(row).toEqual({ status: "cancelled", image_digest: null });
});
