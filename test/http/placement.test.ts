import { afterEach, beforeEach, describe, expect, inject, test } from "vitest";
import { heartbeat } from "../../src/db/hosts-worker.ts";
import { ask, createApi, type Problem, type TestApi, type TestProject } from "../support/api.ts";

const gib = 2 ** 30;

let api: TestApi;
let projects: TestProject[];

beforeEach(async () => {
  api = await createApi(inject("postgresSocketDir"));
  projects = await Promise.all(["a", "b", "c", "d", "e", "f", "g", "h"].map((name) => api.project(name)));
});
afterEach(() => api.close());

interface Created {
  hostId: string;
  name: string;
  ports: { hostPort: number }[];
}
const create = (project: TestProject | undefined, body: object) =>
  ask<Created & Problem>(api.app, project?.tokens.deployer ?? "", "POST", "/v1/containers", {
    image: "debian:12",
    ...body,
  });

describe("placement", () => {
  test("however many create at once, no host is promised more than it may, and all of it is used", async () => {
    // Twice its memory may be promised: 6 and 10 containers of 1 GiB.
    const small = await api.host({ name: "small", memory: 3 * gib });
    const large = await api.host({ name: "large", memory: 5 * gib });
    const answers = await Promise.all(
      projects.flatMap((project) =>
        Array.from({ length: 4 }, () =>
          create(project, { resources: { memory: gib }, ports: [{ containerPort: 80 }] }),
        ),
      ),
    );
    const placed = answers.filter(({ status }) => status === 202);
    expect(placed.filter(({ body }) => body.hostId === small)).toHaveLength(6);
    expect(placed.filter(({ body }) => body.hostId === large)).toHaveLength(10);
    const refused = answers.filter(({ status }) => status !== 202);
    expect(refused).toHaveLength(16);
    for (const { body } of refused) {
      expect(body).toMatchObject({
        code: "no_capacity",
        detail:
          "No host has room: small has 0 MiB of memory left, and 1.0 GiB is asked; large has 0 MiB of memory left, and 1.0 GiB is asked.",
      });
    }
    const ports = placed.map(({ body }) => `${body.hostId} ${String(body.ports[0]?.hostPort)}`);
    expect(new Set(ports).size).toBe(16);
  });

  test("a host whose disk has less free than it keeps gets nothing more, until its worker tells that it has", async () => {
    const id = await api.host({ name: "filling" });
    await api.database.owner`update hosts set disk_reserve = ${10 * gib} where id = ${id}`;
    const worker = await api.database.asHost(id);
    const view = async () => {
      const headers = { "berth-project": projects[0]?.id ?? "" };
      return (await ask<object>(api.app, api.operator, "GET", `/v1/hosts/${id}`, undefined, headers)).body;
    };
    expect(await view()).toMatchObject({ diskFree: null, diskReserve: 10 * gib });
    expect(await heartbeat(worker.db, { id, session: 1 }, 9 * gib)).toBe(true);
    expect(await view()).toMatchObject({ diskFree: 9 * gib });
    expect(await create(projects[0], {})).toMatchObject({
      status: 409,
      body: {
        code: "no_capacity",
        detail: "No host has room: filling has 9.0 GiB of its disk free, and keeps 10.0 GiB.",
      },
    });
    await heartbeat(worker.db, { id, session: 1 }, 11 * gib);
    expect((await create(projects[0], {})).body).toMatchObject({ hostId: id });
  });

  test("of one port that many ask for, each host gives one", async () => {
    const hosts = [await api.host(), await api.host()];
    const answers = await Promise.all(
      projects.map((project) => create(project, { ports: [{ containerPort: 80, hostPort: 8443 }] })),
    );
    const placed = answers.filter(({ status }) => status === 202).map(({ body }) => body.hostId);
    expect(placed.sort()).toEqual(hosts.sort());
    const others = answers.filter(({ status }) => status !== 202);
    expect(others.map(({ body }) => [body.code, body.detail])).toEqual(
      others.map(() => ["port_taken", "Host port 8443/tcp is taken."]),
    );
  });

  test("a host that reserves the port is passed by; when all that have room do, that is why", async () => {
    const reserving = await api.host({ name: "reserving", reservedPorts: [8443] });
    const body = { ports: [{ containerPort: 80, hostPort: 8443 }] };
    expect((await create(projects[0], body)).body).toMatchObject({
      code: "port_taken",
      detail: "Host port 8443 is reserved by the operator.",
    });
    const other = await api.host({ name: "other", memory: gib });
    expect((await create(projects[0], body)).body).toMatchObject({ hostId: other });
    expect((await create(projects[0], { ...body, placement: { host: reserving } })).body.code).toBe("port_taken");
  });

  test("is kept to where it is asked to be, and why it can't be is said of those hosts alone", async () => {
    await api.host({ name: "one" });
    const two = await api.host({ name: "two" });
    await api.database.owner`update hosts set labels = '{"zone": "b"}' where id = ${two}`;
    for (const placement of [{ host: "two" }, { host: two }, { hostLabels: { zone: "b" } }]) {
      expect((await create(projects[0], { placement })).body).toMatchObject({ hostId: two });
    }
    await api.database.owner`update hosts set heartbeat_at = now() - interval '1 minute' where id = ${two}`;
    expect((await create(projects[0], { placement: { host: "two" } })).body).toMatchObject({
      code: "no_capacity",
      detail: "No host has room: two has not been heard of lately.",
    });
    expect((await create(projects[0], { placement: { hostLabels: { zone: "c" } } })).body.detail).toBe(
      "No host has room: one does not have the label zone=c; two does not have the label zone=c.",
    );
    expect((await create(projects[0], { placement: { host: "three" } })).body.detail).toBe("There is no host three.");
    expect((await create(projects[0], { placement: { hots: "one" } })).body.code).toBe("invalid_request");
  });
});

describe("the containers of a lost host", () => {
  test("say so while they might run, and not when they had ended", async () => {
    const host = await api.host({ name: "gone" });
    const [project] = projects;
    await create(project, { name: "running" });
    await create(project, { name: "ended" });
    const { owner } = api.database;
    await owner`update containers set status = 'running', seen_rev = wanted_rev, run = 1 where name = 'running'`;
    await owner`update containers set status = 'exited', exit_code = 3, seen_rev = wanted_rev, run = 1 where name = 'ended'`;
    const show = async (name: string) =>
      (await ask<object>(api.app, project?.tokens.viewer ?? "", "GET", `/v1/containers/${name}`)).body;
    expect(await show("running")).toMatchObject({ status: "running", reason: null });
    await owner`update hosts set heartbeat_at = now() - interval '1 minute' where id = ${host}`;
    expect(await show("running")).toMatchObject({
      status: "running",
      reason: "host_lost",
      detail: "The host gone has not been heard of lately: what the container does is not known.",
    });
    expect(await show("ended")).toMatchObject({ status: "exited", exitCode: 3, reason: null });
  });
});
