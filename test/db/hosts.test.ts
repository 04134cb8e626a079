import { afterAll, beforeAll, describe, expect, inject, it } from "vitest";
import type { HostRegistration } from "../../src/core/host.ts";
import { newId } from "../../src/core/ids.ts";
import type { Db } from "../../src/db/connect.ts";
import { drizzle } from "../../src/db/drizzle.ts";
import { forgetHost, leasedKind, listHosts, setHostState } from "../../src/db/hosts.ts";
import { insertJoinToken, joinHost, listJoinTokens, revokeJoinToken } from "../../src/db/hosts-join.ts";
import { heartbeat, openHostSession, registerHost } from "../../src/db/hosts-worker.ts";
import * as schema from "../../src/db/schema.ts";
import { openHost, registration } from "../support/host.ts";
import { createDatabase, type TestDatabase } from "../support/postgres.ts";

describe("hosts", () => {
  let database: TestDatabase;
  let db: Db;

  beforeAll(async () => {
    database = await createDatabase(inject("postgresSocketDir"));
    db = drizzle(database.owner, { schema });
  });
  afterAll(() => database.drop());

  const remote = (name: string, more: object = {}) => ({
    ...registration,
    name,
    agentUrl: `tls://198.18.0.2:7072`,
    ...more,
  });
  const join = (token: string, host: HostRegistration) => joinHost(database.api, token, host, (id) => `key of ${id}`);
  const silent = (id: string) =>
    database.owner`update hosts set heartbeat_at = now() - interval '31 seconds' where id = ${id}`;
  const stateOf = async (id: string) => (await listHosts(database.api, id))[0]?.state;

  it("are the same as long as their data directory is, whose socket tells two of one name apart", async () => {
    const id = await registerHost(db, { ...registration, name: "same", agentUrl: "unix:/a" });
    expect(await registerHost(db, { ...registration, name: "same", agentUrl: "unix:/a" })).toBe(id);
    await expect(registerHost(db, { ...registration, name: "same", agentUrl: "unix:/b" })).rejects.toMatchObject({
      code: "name_taken",
    });
  });

  it("can be renamed, but not to what another is called; a start of the machine is noticed", async () => {
    const { id, session } = await openHost(db, { name: "renamed", agentUrl: "unix:/renamed" });
    await openHost(db, { name: "other", agentUrl: "unix:/other" });
    const named = (name: string, bootId = "boot-1") => openHostSession(db, id, { ...registration, name, bootId });
    await expect(named("other")).rejects.toMatchObject({ code: "name_taken" });
    expect(await named("new-name")).toEqual({ id, session: session + 1, rebooted: false });
    expect(await named("new-name", "boot-2")).toEqual({ id, session: session + 2, rebooted: true });
    expect(await openHostSession(db, newId("host"), registration)).toBeNull();
  });

  it("join with a token as often as it says, until it has expired or was revoked", async () => {
    const two = await insertJoinToken(database.api, 2, 3600);
    const a = await join(two.id, remote("join-a"));
    expect(await listJoinTokens(database.api)).toMatchObject([{ id: two.id, usesLeft: 1 }]);
    expect(await join(two.id, remote("join-b"))).not.toBe(a);
    expect(await listJoinTokens(database.api)).toEqual([]);
    await expect(join(two.id, remote("join-c"))).rejects.toMatchObject({ code: "unauthorized" });
    await expect(join(newId("joinToken"), remote("join-c"))).rejects.toMatchObject({
      code: "unauthorized",
    });

    const revoked = await insertJoinToken(database.api, 1, 3600);
    expect(await revokeJoinToken(database.api, revoked.id)).toBe(true);
    const expired = await insertJoinToken(database.api, 1, 3600);
    await database.owner`update join_tokens set expires_at = now() where id = ${expired.id}`;
    for (const { id } of [revoked, expired]) {
      await expect(join(id, remote("join-c"))).rejects.toMatchObject({ code: "unauthorized" });
    }
    expect(await revokeJoinToken(database.api, newId("joinToken"))).toBe(false);
  });

  it("a token of one use lets one of many in that ask at once", async () => {
    const { id } = await insertJoinToken(database.api, 1, 3600);
    const all = await Promise.allSettled(Array.from({ length: 12 }, (_, n) => join(id, remote(`raced-${String(n)}`))));
    expect(all.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
    expect(await database.owner`select from hosts where name like 'raced-%'`).toHaveLength(1);
  });

  it("who asks again since the answer was lost is the same host, until it has begun; a taken name uses no token up", async () => {
    const token = await insertJoinToken(database.api, 1, 3600);
    const host = remote("again");
    const id = await join(token.id, host);
    expect(await stateOf(id)).toBe("lost");
    expect(await join(token.id, host)).toBe(id);
    await expect(join(token.id, { ...host, agentUrl: "tls://198.18.0.9:1" })).rejects.toThrow();
    await openHostSession(db, id, host);
    expect(await stateOf(id)).toBe("ready");
    await expect(join(token.id, host)).rejects.toMatchObject({ code: "unauthorized" });

    const other = await insertJoinToken(database.api, 1, 3600);
    await expect(join(other.id, host)).rejects.toMatchObject({ code: "name_taken" });
    expect(await listJoinTokens(database.api)).toMatchObject([{ id: other.id, usesLeft: 1 }]);
  });

  it("are lost when they are silent by the database's clock, drained or not, and are back with a heartbeat", async () => {
    const host = await openHost(db, { name: "silent", agentUrl: "unix:/silent" });
    await setHostState(database.api, host.id, "draining");
    expect(await stateOf(host.id)).toBe("draining");
    await silent(host.id);
    expect(await stateOf(host.id)).toBe("lost");
    expect(await heartbeat(db, host, 1)).toBe(true);
    expect(await stateOf(host.id)).toBe("draining");
  });

  it("are forgotten when lost: containers and ports go with an event, jobs stay, and the host is told at its heartbeat", async () => {
    const host = await openHost(db, { name: "forgotten", agentUrl: "unix:/forgotten" });
    const projectId = newId("project");
    const [container, job] = [newId("container"), newId("job")];
    await database.owner`insert into projects (id, name) values (${projectId}, 'forgetting')`;
    await database.owner`
      insert into containers (id, project_id, host_id, name, spec, image_reference, cpus, memory, pids, disk, wanted)
      values (${container}, ${projectId}, ${host.id}, 'web', '{}', 'web:1', 1, 1, 1, 1, 'running')`;
    await database.owner`
      insert into ports (id, project_id, container_id, host_id, container_port, host_port, protocol)
      values (${newId("port")}, ${projectId}, ${container}, ${host.id}, 80, 8000, 'tcp')`;
    await database.owner`
      insert into jobs (id, project_id, kind, payload, status, host_id, epoch, lease_until)
      values (${job}, ${projectId}, 'pull', '{}', 'running', ${host.id}, 3, now())`;

    expect(await leasedKind(database.api, host.id, job, 3)).toBe("pull");
    expect(await leasedKind(database.api, host.id, job, 2)).toBeNull();
    expect(await leasedKind(database.api, newId("host"), job, 3)).toBeNull();

    expect(await forgetHost(database.api, host.id)).toBe(false);
    await silent(host.id);
    expect(await forgetHost(database.api, host.id)).toBe(true);
    expect(await stateOf(host.id)).toBeUndefined();
    expect(await heartbeat(db, host, 1)).toBe(false);
    expect(await database.owner`select from containers where id = ${container}`).toHaveLength(0);
    expect(await database.owner`select from ports where host_id = ${host.id}`).toHaveLength(0);
    expect(await database.owner`select host_id from jobs where id = ${job}`).toEqual([{ host_id: null }]);
    expect(await database.owner`select type, data from events where subject_id = ${container}`).toMatchObject([
      { type: "container.removed", data: { reason: "host_lost", name: "web" } },
    ]);
    expect(await forgetHost(database.api, host.id)).toBe(false);
  });
});
