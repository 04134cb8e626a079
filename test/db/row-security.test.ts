import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { tokenHash } from "../../src/core/keys.ts";
import { lock, read, together, transact, wake } from "../../src/db/scope.ts";
import { authenticate } from "../../src/db/tokens.ts";
import { createDatabase, type TestDatabase } from "../support/postgres.ts";

let db: TestDatabase;
const mine = { projectId: "prj_mine" };
const theirs = { projectId: "prj_theirs" };

const tenantTables = [
  "images",
  "tags",
  "jobs",
  "builds",
  "build_logs",
  "build_cache",
  "containers",
  "ports",
  "events",
  "idempotency_keys",
  "uploaded_blobs",
  "sources",
  "source_heads",
  "deliveries",
] as const;

beforeAll(async () => {
  db = await createDatabase(inject("postgresSocketDir"));
  const { owner } = db;
  await owner`insert into projects (id, name) values ('prj_mine', 'mine'), ('prj_theirs', 'theirs')`;
  await owner`insert into hosts (id, name, address, agent_url, cpus, memory, disk, port_first, port_last)
    values ('hst_1', 'h', '127.0.0.1', 'unix:/x', 4, 1000, 1000, 8000, 8010)`;
  for (const p of ["prj_mine", "prj_theirs"]) {
    await owner`insert into images (project_id, digest, media_type, manifest, config, layers, size_bytes) values (${p}, 'd', 'm', '{}', '{}', '[]', 1)`;
    await owner`insert into tags (project_id, repository, tag, digest) values (${p}, 'web', '1', 'd')`;
    await owner`insert into uploaded_blobs (project_id, digest, size_bytes) values (${p}, 'd', 1)`;
    await owner`insert into jobs (id, project_id, kind, payload) values (${`job_${p}`}, ${p}, 'build', '{}')`;
    await owner`insert into builds (id, project_id, job_id, request) values (${`bld_${p}`}, ${p}, ${`job_${p}`}, '{}')`;
    await owner`insert into build_logs (build_id, project_id, seq, step, stream, text) values (${`bld_${p}`}, ${p}, 1, 1, 'stdout', 'x')`;
    await owner`insert into build_cache (project_id, key, result) values (${p}, 'k', '{}')`;
    await owner`insert into containers (id, project_id, host_id, name, spec, image_reference, cpus, memory, pids, disk, wanted)
      values (${`ctr_${p}`}, ${p}, 'hst_1', 'web', '{}', 'web:1', 1, 1, 1, 1, 'running')`;
    await owner`insert into ports (id, project_id, container_id, host_id, container_port, host_port, protocol)
      values (${`prt_${p}`}, ${p}, ${`ctr_${p}`}, 'hst_1', 80, ${p === "prj_mine" ? 8000 : 8001}, 'tcp')`;
    await owner`insert into events (project_id, type, subject_id) values (${p}, 't', 's')`;
    await owner`insert into idempotency_keys (project_id, key, request_hash, status, response) values (${p}, 'k', 'x', 200, '{}')`;
    await owner`insert into sources (id, project_id, name, provider, build, secret_sealed)
      values (${`src_${p}`}, ${p}, 'web', 'berth', '{}', 's')`;
    await owner`insert into source_heads (source_id, project_id, ref) values (${`src_${p}`}, ${p}, 'HEAD')`;
    await owner`insert into deliveries (id, source_id, project_id, delivery_key, event, status)
      values (${`dlv_${p}`}, ${`src_${p}`}, ${p}, 'k', 'push', 'ignored')`;
    await owner`insert into tokens (id, project_id, role, hash) values (${`tok_${p}`}, ${p}, 'admin', ${tokenHash(p)})`;
  }
});
afterAll(() => db.drop());

describe("the API's role", () => {
  test.each(tenantTables)("sees of %s only the scope's rows, and none without one", async (table) => {
    const { api, owner } = db;
    const count = async (rows: Promise<{ project_id: string }[]>) => (await rows).map((row) => row.project_id);
    // The probe works where nothing protects: the owner sees both.
    expect(await count(owner`select project_id from ${owner(table)}`)).toHaveLength(2);
    expect(await count(api`select project_id from ${api(table)}`)).toEqual([]);
    expect(await count(read(api, mine, api`select project_id from ${api(table)}`))).toEqual(["prj_mine"]);
    expect(await count(transact(api, theirs, (tx) => tx`select project_id from ${tx(table)}`))).toEqual(["prj_theirs"]);
  });

  test.each(tenantTables)("changes nothing of another project in %s", async (table) => {
    const { api } = db;
    const changed = await transact(
      api,
      mine,
      (tx) => tx`update ${tx(table)} set project_id = project_id where project_id = 'prj_theirs'`,
    );
    expect(changed.count).toBe(0);
    const deleted = await transact(api, mine, (tx) => tx`delete from ${tx(table)} where project_id = 'prj_theirs'`);
    expect(deleted.count).toBe(0);
  });

  test("can't write rows of another project", async () => {
    const insert = transact(
      db.api,
      mine,
      (tx) => tx`insert into events (project_id, type, subject_id) values ('prj_theirs', 'forged', 's')`,
    );
    await expect(insert).rejects.toMatchObject({ code: "42501" });
    const move = transact(db.api, mine, (tx) => tx`update events set project_id = 'prj_theirs'`);
    await expect(move).rejects.toMatchObject({ code: "42501" });
  });

  test("sees no token's hash of another project, makes no operator, and touches no host's size", async () => {
    const { api } = db;
    expect(await read(api, mine, api`select id from tokens`)).toEqual([{ id: "tok_prj_mine" }]);
    const forge = transact(
      api,
      mine,
      (tx) => tx`insert into tokens (id, role, hash) values ('tok_x', 'operator', 'x')`,
    );
    await expect(forge).rejects.toMatchObject({ code: "42501" });
    await expect(api`update hosts set memory = 1`).rejects.toMatchObject({ code: "42501" });
    const project = transact(api, mine, (tx) => tx`insert into projects (id, name) values ('prj_x', 'x')`);
    await expect(project).rejects.toMatchObject({ code: "42501" });
  });

  test("a scope ends with its statement and transaction, on every connection of the pool", async () => {
    const { api } = db;
    await Promise.all(
      Array.from({ length: 50 }, async (_, n) => {
        const scope = n % 2 === 0 ? mine : theirs;
        const rows =
          n % 4 < 2
            ? await read<{ id: string }>(api, scope, api`select id from containers`)
            : await transact(api, scope, (tx) => tx<{ id: string }[]>`select id from containers`);
        expect(rows.map((row) => row.id)).toEqual([`ctr_${scope.projectId}`]);
        expect(await api`select id from containers`).toEqual([]);
      }),
    );
  });

  test("a token is found by its hash alone, and not once it is revoked", async () => {
    const hash = tokenHash("prj_mine");
    expect(await authenticate(db.api, hash)).toMatchObject({ tokenId: "tok_prj_mine", project: { name: "mine" } });
    await db.owner`update tokens set revoked_at = now() where id = 'tok_prj_mine'`;
    expect(await authenticate(db.api, hash)).toBeNull();
  });
});

describe("transactions", () => {
  test("what is sent together after a lock sees what its other holders have committed", async () => {
    const { api } = db;
    const step = (n: number) =>
      transact(api, mine, async (tx) => {
        const [, rows] = await together([
          lock(tx, "counter"),
          tx<{ n: number }[]>`select count(*)::int as n from events where type = 'counted'`,
        ]);
        await tx`insert into events (project_id, type, subject_id) values ('prj_mine', 'counted', ${String(n)})`;
        return rows[0]?.n ?? -1;
      });
    const seen = await Promise.all(Array.from({ length: 20 }, (_, n) => step(n)));
    expect(seen.sort((a, b) => a - b)).toEqual(Array.from({ length: 20 }, (_, n) => n));
  });

  test("the first failure is the one that is told, whatever fails after it", async () => {
    for (let n = 0; n < 50; n++) {
      const failing = transact(db.api, mine, (tx) =>
        together([tx`select 1`, tx`select 1 / 0`.then((rows) => rows), tx`select 2`, wake(tx, "x")]),
      );
      await expect(failing).rejects.toMatchObject({ code: "22012" });
    }
  });
});

describe("free ports", () => {
  test("pass by those that anybody has and those that are reserved", async () => {
    const free = async (from: number) =>
      (await db.api<{ p: number }[]>`select berth_free_port('hst_1', 'tcp', ${from}, 8010) as p`)[0]?.p;
    expect(await free(8000)).toBe(8002);
    await db.owner`update hosts set reserved_ports = '{8002, 8003}'`;
    expect(await free(8000)).toBe(8004);
  });
});
