import { readFileSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import type { Answer, Problem } from "../support/api.ts";
import { DrivenHost } from "../support/driven-host.ts";

// What clients do with a container that runs, through the API and a real worker.

interface Container {
  id: string;
  status: string;
  exitCode: number | null;
}

let host: DrivenHost;
beforeAll(async () => {
  host = await DrivenHost.create(inject("postgresSocketDir"), 21_150);
  await host.start();
  await host.buildBusybox("box:1");
});
afterAll(() => host.destroy());

const wait = { prefer: "wait=30" };

async function run(script: string, more: object = {}): Promise<string> {
  const body = { image: "box:1", command: ["/bin/sh", "-c", script], ...more };
  const { status, body: made } = await host.ask<Container>("POST", "/v1/containers", body, wait);
  expect({ status, container: made }).toMatchObject({ status: 201, container: { status: "running" } });
  return made.id;
}
const act = <T = Container>(id: string, verb: string, body?: object): Promise<Answer<T>> =>
  host.ask<T>("POST", `/v1/containers/${id}/${verb}`, body, wait);
const get = async (id: string): Promise<Container> => (await host.ask<Container>("GET", `/v1/containers/${id}`)).body;
const remove = (id: string) => host.ask("DELETE", `/v1/containers/${id}?force=true`, undefined, wait);
const events = async (id: string): Promise<string[]> =>
  (await host.ask<{ items: { type: string }[] }>("GET", `/v1/events?subjectId=${id}`)).body.items.map(
    ({ type }) => type,
  );

/** Clock ticks that the container's processes have computed for. */
async function computed(id: string): Promise<number> {
  const [row] = await host.api.database.owner<{ pid: number }[]>`select pid from containers where id = ${id}`;
  return Number(readFileSync(`/proc/${String(row?.pid)}/stat`, "utf8").split(" ")[13]);
}

describe("pausing", () => {
  const busy = "while true; do :; done";

  test("stops all that a container does, until it goes on", async () => {
    const id = await run(busy);
    await expect.poll(() => computed(id)).toBeGreaterThan(0);
    expect((await act(id, "pause")).body.status).toBe("paused");
    const before = await computed(id);
    expect(await act<Problem>(id, "exec", { command: ["/bin/true"] })).toMatchObject({
      status: 409,
      body: { code: "invalid_state" },
    });
    // Again changes nothing, and a new worker finds it as it is.
    expect((await act(id, "pause")).body.status).toBe("paused");
    await host.stop();
    await host.start();
    expect((await get(id)).status).toBe("paused");
    expect(await computed(id)).toBe(before);
    expect((await act(id, "unpause")).body.status).toBe("running");
    await expect.poll(() => computed(id)).toBeGreaterThan(before);
    expect(await events(id)).toEqual(expect.arrayContaining(["container.paused", "container.unpaused"]));
    await remove(id);
  });

  test.each([
    ["stop", "it ends by its signal", { exitCode: 7 }],
    ["kill", "it is killed", { exitCode: 137 }],
  ])("a container that stands still takes a %s: %s", async (verb, _, end) => {
    const id = await run("trap 'exit 7' TERM; while true; do sleep 0.1; done");
    await act(id, "pause");
    await act(id, verb, verb === "kill" ? {} : undefined);
    await act(id, "wait");
    expect(await get(id)).toMatchObject({ status: "exited", ...end });
    // The wish to stand still ended with the run.
    expect((await act(id, "start")).body.status).toBe("running");
    await act(id, "pause");
    expect((await remove(id)).status).toBe(204);
  });

  test("needs a container that runs", async () => {
    const { body } = await host.ask<Container>("POST", "/v1/containers", { image: "box:1", start: false }, wait);
    for (const verb of ["pause", "unpause"]) {
      expect(await act<Problem>(body.id, verb)).toMatchObject({ status: 409, body: { code: "invalid_state" } });
    }
    await remove(body.id);
  });
});
