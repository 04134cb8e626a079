import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { writeTar } from "../../src/image/tar-write.ts";
import { failpoints } from "../../src/isolation/failpoint.ts";
import { DrivenHost } from "../support/driven-host.ts";
import { collect, entry } from "../support/image.ts";
import { violations } from "../support/invariants.ts";

// A worker is killed between every two effects of a build. The next one takes the build over at once, goes on behind the
// steps that were finished, and leaves one image, one end and a log without gaps.

interface Build {
  id: string;
  status: string;
  error: { code: string; message: string } | null;
  steps: { status: string; cached: boolean }[];
}

let host: DrivenHost;

beforeAll(async () => {
  host = await DrivenHost.create(inject("postgresSocketDir"));
  await host.start();
  await host.buildBusybox("box:1");
});
afterAll(() => host.destroy());

async function ask(dockerfile: readonly string[]): Promise<Build> {
  const tar = await collect(writeTar([entry("Dockerfile", { content: `${dockerfile.join("\n")}\n` })]));
  const response = await host.api.app.request("/v1/builds?tag=made:1", {
    method: "POST",
    headers: { authorization: `Bearer ${host.project.tokens.admin}`, "content-type": "application/x-tar" },
    body: tar,
  });
  expect(response.status).toBe(202);
  return (await response.json()) as Build;
}

const get = async (id: string): Promise<Build> => (await host.ask<Build>("GET", `/v1/builds/${id}`)).body;

async function ends(id: string, status: string): Promise<Build> {
  await expect.poll(async () => (await get(id)).status, { timeout: 30_000 }).toBe(status);
  return get(id);
}

async function holds(): Promise<void> {
  await host.stop();
  expect(await violations({ sql: host.api.database.owner, config: host.config })).toEqual([]);
}

/** And where a step's sandbox is taken away while the next step runs. */
const ofBuilds = failpoints.filter((name) => /^(job|build)\.|^release\.disk$/.test(name));

describe("a worker killed in a build", () => {
  test.each(ofBuilds)("at %s: the next one finishes it", async (name) => {
    await host.stop();
    await host.start(name);
    // New content each time: nothing of it is in the cache.
    const { id } = await ask([`FROM box:1`, `RUN echo ${name} > /a`, `RUN echo ${name} > /b`]);
    await host.killed();
    const before = performance.now();
    await host.start();
    await ends(id, "succeeded");
    expect(performance.now() - before).toBeLessThan(30_000);
    const [job] = await host.api.database.owner`
      select attempt, lost from jobs where id = (select job_id from builds where id = ${id})`;
    expect(job).toEqual(name === "job.settled" ? { attempt: 1, lost: 0 } : { attempt: 2, lost: 1 });
    const { steps } = await get(id);
    if (name === "build.kept") expect(steps.map(({ cached }) => cached)).toContain(true);
    await holds();
  });

  test("three times: the build stays away from workers, and others go on", async () => {
    await host.stop();
    await host.start();
    const { id } = await ask(["FROM box:1", "RUN echo begun; sleep 3600"]);
    for (let attempt = 1; attempt <= 3; attempt++) {
      await expect
        .poll(
          async () => {
            const rows = await host.api.database.owner`
            select count(*)::int n from build_logs where build_id = ${id} and text = 'begun'`;
            return rows[0]?.["n"] as number;
          },
          { timeout: 30_000 },
        )
        .toBe(attempt);
      await host.stop("SIGKILL");
      await host.start();
    }
    expect((await ends(id, "failed")).error).toMatchObject({ code: "attempts_exhausted" });
    const other = await ask(["FROM box:1", "RUN echo others"]);
    await ends(other.id, "succeeded");
    await holds();
  });
});
