import { afterAll, beforeAll, describe, expect, inject, it } from "vitest";
import { newId } from "../../src/core/ids.ts";
import { claimJobs, extendLeases, settleJobs, takeLost } from "../../src/db/leases.ts";
import { deleteExpired, neededLayers } from "../../src/db/upkeep.ts";
import { attempt, type LoggedInHost, logInHost, refused } from "../support/logged-in-host.ts";
import { createDatabase, type TestDatabase } from "../support/postgres.ts";

const all = Symbol("every column");

/** What the workers' role may do, by table: a table that is not here has not been decided on. */
const rights: Record<string, Partial<Record<"SELECT" | "INSERT" | "UPDATE" | "DELETE", typeof all | string>>> = {
  berth_migrations: {},
  build_cache: { SELECT: all, INSERT: "project_id key result", UPDATE: "result used_at" },
  build_logs: { SELECT: all, INSERT: all },
  builds: {
    SELECT: all,
    INSERT: "id project_id job_id source_id tags request",
    UPDATE: "status request steps warnings image_digest error finished_at",
  },
  containers: {
    SELECT: all,
    INSERT:
      "id project_id host_id name spec labels image_reference image_digest cpus memory pids disk wanted wanted_run",
    UPDATE:
      "name image_digest memory wanted wanted_rev wanted_paused signals seen_rev run status slot ip_address pid exit_code reason detail oom_killed restart_count restart_at started_at finished_at health",
    DELETE: all,
  },
  deliveries: { SELECT: "id project_id job_id status", UPDATE: "status build_id detail" },
  deployments: {
    SELECT: all,
    INSERT: "id project_id source_id build_id job_id image_digest template",
    UPDATE: "status container_id previous_container_id reason detail finished_at moved_at",
  },
  events: { SELECT: all, INSERT: "project_id type subject_id data" },
  hosts: {
    SELECT: all,
    UPDATE:
      "name address agent_url boot_id session cpus memory disk port_first port_last reserved_ports labels heartbeat_at disk_free disk_reserve",
  },
  idempotency_keys: {},
  images: { SELECT: all, INSERT: all },
  jobs: {
    SELECT: all,
    INSERT: "id project_id kind subject_id payload after_job_id max_attempts",
    UPDATE: "status attempt run_at lease_until payload progress result error finished_at after_job_id",
  },
  join_tokens: {},
  ports: {
    SELECT: all,
    INSERT: "id project_id container_id host_id container_port host_port protocol host_address",
    UPDATE: "container_id container_port status",
    DELETE: all,
  },
  projects: { SELECT: all },
  source_heads: { SELECT: all, INSERT: "source_id project_id ref", UPDATE: "commit build_id" },
  // The right to change one column is what locking a row takes; the policy lets nothing be changed.
  sources: { SELECT: "id project_id name url subdirectory build deploy", UPDATE: "created_at" },
  tags: { SELECT: all, INSERT: all, UPDATE: "digest updated_at" },
  tokens: {},
  unneeded_blobs: {},
  uploaded_blobs: {},
};

/** Which of the two roles may call a function of the database; nobody else may. */
const callers: Record<string, string> = {
  berth_admit_host: "api",
  berth_authenticate: "api",
  berth_begun_build: "worker",
  berth_claim_blob: "api worker",
  berth_claim_jobs: "worker",
  berth_delete_expired: "worker",
  berth_end_sessions: "api",
  berth_forget_host: "api",
  berth_free_port: "api worker",
  berth_host: "worker",
  berth_host_load: "api worker",
  berth_host_state: "api worker",
  berth_leased_kind: "api",
  berth_needed_blobs: "api",
  berth_needed_layers: "worker",
  berth_project: "api",
  berth_projects_at_work: "worker",
  berth_serves: "worker",
  berth_take_lost: "worker",
  berth_unneeded_before: "api",
  berth_webhook_source: "api",
};

let db: TestDatabase;
let mine: LoggedInHost;
let other: LoggedInHost;

const ids = { mine: "prj_mine", other: "prj_other" };

/** A row of everything in a project, whose container is on the host; its job is another's to run. */
async function fill(projectId: string, host: LoggedInHost, hostPort: number): Promise<void> {
  const { owner } = db;
  const [p, id] = [projectId, (kind: string) => `${kind}_${projectId}`];
  await owner`insert into projects (id, name) values (${p}, ${p.replace("_", "-")})`;
  await owner`insert into tokens (id, project_id, role, hash) values (${id("tok")}, ${p}, 'admin', ${Buffer.from(p)})`;
  await owner`insert into images (project_id, digest, media_type, manifest, config, layers, size_bytes)
    values (${p}, ${`sha256:${p}`}, 'm', '{}', '{}', ${owner.json([{ diffId: `diff-${p}` }])}, 1)`;
  await owner`insert into tags (project_id, repository, tag, digest) values (${p}, 'web', '1', ${`sha256:${p}`})`;
  await owner`insert into jobs (id, project_id, kind, payload) values (${id("job")}, ${p}, 'build', '{}')`;
  await owner`insert into builds (id, project_id, job_id, request) values (${id("bld")}, ${p}, ${id("job")}, '{}')`;
  await owner`insert into build_logs (build_id, project_id, seq, step, stream, text) values (${id("bld")}, ${p}, 1, 1, 'stdout', 'x')`;
  await owner`insert into build_cache (project_id, key, result) values (${p}, 'k', '{}')`;
  await owner`insert into sources (id, project_id, name, provider, url, build, secret_sealed)
    values (${id("src")}, ${p}, 'web', 'generic', 'https://git.example/web', '{}', 'sealed')`;
  await owner`insert into source_heads (source_id, project_id, ref) values (${id("src")}, ${p}, 'HEAD')`;
  await owner`insert into deliveries (id, source_id, project_id, delivery_key, event, status)
    values (${id("dlv")}, ${id("src")}, ${p}, 'k', 'push', 'ignored')`;
  await owner`insert into containers (id, project_id, host_id, name, spec, image_reference, cpus, memory, pids, disk, wanted)
    values (${id("ctr")}, ${p}, ${host.id}, 'web', '{}', 'web:1', 1, 1, 1, 1, 'running')`;
  await owner`insert into ports (id, project_id, container_id, host_id, container_port, host_port, protocol)
    values (${id("prt")}, ${p}, ${id("ctr")}, ${host.id}, 80, ${hostPort}, 'tcp')`;
  await owner`insert into deployments (id, project_id, source_id, image_digest, template)
    values (${id("dpl")}, ${p}, ${id("src")}, ${`sha256:${p}`}, '{}')`;
  await owner`insert into events (project_id, type, subject_id) values (${p}, 't', 's')`;
  await owner`insert into idempotency_keys (project_id, key, request_hash, status, response) values (${p}, 'k', 'x', 200, '{}')`;
}

beforeAll(async () => {
  db = await createDatabase(inject("postgresSocketDir"));
  mine = await logInHost(db, "mine");
  other = await logInHost(db, "other");
  await fill(ids.mine, mine, 8001);
  await fill(ids.other, other, 8002);
  await db.owner`insert into join_tokens (id, uses_left, expires_at) values ('jtk_x', 1, now() + interval '1 hour')`;
});
afterAll(() => db.drop());

describe("the workers' role", () => {
  it("has exactly these rights, and row-level security where it has any", async () => {
    const { owner } = db;
    const tables = await owner<{ name: string; rls: boolean; columns: string[] }[]>`
      select relname as name, relrowsecurity as rls,
        (select array_agg(attname::text order by attnum) from pg_attribute where attrelid = c.oid and attnum > 0 and not attisdropped) as columns
      from pg_class c where relnamespace = 'public'::regnamespace and relkind in ('r', 'p', 'v', 'm', 'f') order by relname`;
    expect(tables.map(({ name }) => name)).toEqual(Object.keys(rights).sort());
    for (const { name, rls, columns } of tables) {
      const has = async (privilege: string) => {
        const granted = await owner<{ column: string }[]>`
          select c as column from unnest(${columns}::text[]) c where has_column_privilege('berth_worker', ${name}::regclass, c, ${privilege})`;
        return granted.map(({ column }) => column).sort();
      };
      for (const privilege of ["SELECT", "INSERT", "UPDATE"] as const) {
        const allowed = rights[name]?.[privilege] ?? "";
        const expected = allowed === all ? columns : allowed.split(" ").filter((column) => column !== "");
        expect(await has(privilege), `${privilege} on ${name}`).toEqual([...expected].sort());
      }
      const [more] = await owner<{ deletes: boolean; others: boolean }[]>`
        select has_table_privilege('berth_worker', ${name}::regclass, 'DELETE') as deletes,
          has_table_privilege('berth_worker', ${name}::regclass, 'TRUNCATE, REFERENCES, TRIGGER, MAINTAIN') as others`;
      expect(more, name).toEqual({ deletes: rights[name]?.DELETE === all, others: false });
      if (Object.keys(rights[name] ?? {}).length > 0) expect(rls, name).toBe(true);
    }
  });

  it("calls these functions and no others; what acts for the owner finds no table of the caller's", async () => {
    const functions = await db.owner<
      { name: string; by: string; definer: boolean; path: string | null; open: boolean }[]
    >`
      select p.proname as name, p.prosecdef as definer, array_to_string(p.proconfig, ',') as path,
        concat_ws(' ', case when has_function_privilege('berth_api', p.oid, 'EXECUTE') then 'api' end,
          case when has_function_privilege('berth_worker', p.oid, 'EXECUTE') then 'worker' end) as by,
        exists (select from aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a where a.grantee = 0) as open
      from pg_proc p where p.pronamespace = 'public'::regnamespace and starts_with(p.proname, 'berth_') order by p.proname`;
    expect(Object.fromEntries(functions.map(({ name, by }) => [name, by]))).toEqual(callers);
    for (const { name, definer, path, open } of functions) {
      expect(open, `${name} is everybody's to call`).toBe(false);
      if (definer) expect(path, name).toBe("search_path=public, pg_temp");
    }
  });

  it("is nothing but that: a login of each host, a member of this role alone", async () => {
    const roles = await db.owner<{ name: string; powers: boolean; login: boolean; of: string[] | null }[]>`
      select rolname as name, rolcanlogin as login, rolsuper or rolcreaterole or rolcreatedb or rolbypassrls or rolreplication as powers,
        (select array_agg(roleid::regrole::text) from pg_auth_members where member = pg_roles.oid) as of
      from pg_roles where rolname in ('berth_worker', ${`berth_${mine.id}`}) order by login`;
    expect([...roles]).toEqual([
      { name: "berth_worker", powers: false, login: false, of: null },
      { name: `berth_${mine.id}`, powers: false, login: true, of: ["berth_worker"] },
    ]);
  });
});

describe("a host that was taken over", () => {
  const foreign = "where project_id = 'prj_other'";
  it.each([
    "select from tokens",
    "select from join_tokens",
    "select from idempotency_keys",
    "select secret_sealed from sources",
    "select auth_sealed, registry_auth_sealed from sources",
    "insert into tokens (id, role, hash) values ('tok_forged', 'operator', 'x')",
    "update tokens set revoked_at = now()",
    "delete from hosts where name = 'nobody'",
    "update hosts set state = 'draining' where name = 'mine'",
    "update containers set host_id = host_id",
    "update containers set spec = '{}'",
    "update jobs set epoch = epoch + 1",
    "update jobs set kind = 'deploy'",
    "delete from jobs",
    "delete from events",
    "delete from images",
    "insert into events (project_id, type, subject_id, xid) values ('prj_mine', 't', 's', '1')",
    "insert into events (project_id, type, subject_id) values ('prj_other', 't', 's')",
    "insert into images select 'prj_other', 'sha256:forged', media_type, manifest, config, layers, size_bytes, now() from images limit 1",
    "insert into jobs (id, project_id, kind, payload) values ('job_forged', 'prj_mine', 'build', '{}')",
    "insert into jobs (id, project_id, kind, payload) values ('job_forged', 'prj_mine', 'deploy', '{}')",
    `insert into containers (id, project_id, host_id, name, spec, image_reference, cpus, memory, pids, disk, wanted)
      select 'ctr_forged', 'prj_other', id, 'forged', '{}', 'web:1', 1, 1, 1, 1, 'running' from hosts where name = 'other'`,
    `insert into containers (id, project_id, host_id, name, spec, image_reference, cpus, memory, pids, disk, wanted)
      select 'ctr_forged', 'prj_other', id, 'forged', '{}', 'web:1', 1, 1, 1, 1, 'running' from hosts where name = 'mine'`,
    `insert into ports (id, project_id, container_id, host_id, container_port, host_port, protocol)
      select 'prt_forged', 'prj_other', 'ctr_prj_mine', id, 80, 8005, 'tcp' from hosts where name = 'mine'`,
    "insert into tags select 'prj_mine', 'other', '1', digest, now() from images where project_id = 'prj_mine'",
    "update tags set updated_at = now() where project_id = 'prj_mine' and repository = 'web'",
    "select from unneeded_blobs",
    "select berth_forget_host((select id from hosts where name = 'other'), true)",
    "select berth_needed_blobs()",
    "select berth_admit_host((select id from hosts where name = 'other'), 'SCRAM-SHA-256$1:a$b:c')",
    "select berth_webhook_source('src_prj_other')",
    "create table own (a int)",
    "create function own() returns int language sql as 'select 1'",
    "create role forged",
    "alter role berth_worker superuser",
    "set role postgres",
    "set session authorization postgres",
    "alter table containers disable row level security",
    "drop policy own_read on containers",
    "truncate events",
    "select pg_read_file('postgresql.conf')",
    "copy hosts to '/dev/null'",
    "grant berth_worker to berth_api",
    "lock table jobs in access exclusive mode",
  ])("may not: %s", async (statement) => {
    expect(await attempt(mine.connection.sql, statement)).toBe(refused);
    // The owner may: it ends in no error.
    expect(typeof (await attempt(db.owner, statement))).not.toBe("string");
  });

  it.each([
    ...["images", "tags", "jobs", "builds", "build_logs", "build_cache", "containers", "ports", "events"].map(
      (table) => `select project_id from ${table} ${foreign}`,
    ),
    ...["source_heads", "deliveries", "deployments", "sources"].map(
      (table) => `select project_id from ${table} ${foreign}`,
    ),
    "select from projects where id = 'prj_other'",
    `update containers set wanted = 'removed' ${foreign}`,
    `delete from containers ${foreign}`,
    `update ports set container_port = 22 ${foreign}`,
    `delete from ports ${foreign}`,
    `update builds set image_digest = 'sha256:forged' ${foreign}`,
    `update jobs set payload = '{}' ${foreign}`,
    `update deployments set status = 'failed' ${foreign}`,
    `update tags set digest = digest ${foreign}`,
    "update hosts set agent_url = 'unix:/forged' where name = 'other'",
    "update hosts set heartbeat_at = now() where name = 'other'",
  ])("finds nothing by: %s", async (statement) => {
    expect(await attempt(mine.connection.sql, statement)).toBe(0);
    expect(await attempt(db.owner, statement)).toBeGreaterThan(0);
  });

  it("is known by its login, whatever it sets", async () => {
    const { sql } = mine.connection;
    const [row] = await sql.begin(async (tx) => {
      await tx`set local role berth_worker`;
      await tx`select set_config('berth.project_id', 'prj_other', true), set_config('berth.operator', 'on', true)`;
      return tx<{ host: string; projects: string[] }[]>`
        select berth_host() as host, array(select project_id from containers) as projects`;
    });
    expect(row).toEqual({ host: mine.id, projects: [ids.mine] });
  });

  it("puts no table of its own in the place of one of ours", async () => {
    const { sql } = mine.connection;
    // A database of the tests allows temporary tables, as its template's settings are not copied with it.
    const fooled = () =>
      sql.begin(async (tx) => {
        await tx.unsafe("create temporary table containers (host_id text, project_id text) on commit drop");
        await tx`insert into containers values (${mine.id}, 'prj_other')`;
        return (await tx<{ yes: boolean }[]>`select berth_serves('prj_other') as yes`)[0]?.yes;
      });
    expect(await fooled()).toBe(false);
    await db.owner`alter function berth_serves set search_path = public`;
    try {
      expect(await fooled()).toBe(true);
    } finally {
      await db.owner`alter function berth_serves set search_path = public, pg_temp`;
    }
  });
});

describe("a host at work", () => {
  const sourceOf = (projectId: string) => `src_${projectId}`;

  async function makeJob(
    projectId: string,
    kind: string,
    run?: { on: LoggedInHost; expired?: boolean },
  ): Promise<string> {
    const id = newId("job");
    await db.owner`
      insert into jobs (id, project_id, kind, payload, subject_id, status, host_id, epoch, lease_until)
      values (${id}, ${projectId}, ${kind}, '{}', ${sourceOf(projectId)}, ${run === undefined ? "queued" : "running"},
        ${run?.on.id ?? null}, 1, now() + ${run?.expired === true ? "-1 second" : "1 minute"}::interval)`;
    return id;
  }

  it("may claim for itself alone, and takes over what another has lost, but not what that one holds", async () => {
    const [{ sql }, queued] = [mine.connection, await makeJob(ids.other, "pull")];
    const room = { kinds: { pull: 1 }, suspect: true };
    await expect(claimJobs(sql, other.id, room)).rejects.toMatchObject({ code: refused });
    expect(await claimJobs(sql, mine.id, room)).toMatchObject([{ id: queued }]);

    const [lost, held] = [
      await makeJob(ids.other, "pull", { on: other, expired: true }),
      await makeJob(ids.other, "pull", { on: other }),
    ];
    await expect(takeLost(sql, other.id, { held: [], own: true })).rejects.toMatchObject({ code: refused });
    const taken = await takeLost(sql, mine.id, { held: [queued], own: true });
    expect(taken.map(({ id }) => id)).toEqual([lost]);
    expect([...(await extendLeases(sql, [{ id: held, epoch: 1 }])).keys()]).toEqual([]);
    expect([...(await extendLeases(other.connection.sql, [{ id: held, epoch: 1 }])).keys()]).toEqual([held]);
    await db.owner`delete from jobs where id = any(${[queued, lost, held]})`;
  });

  it("sees a project while it runs a job of it, as much as that kind of job needs, and nothing once it has ended", async () => {
    const { sql } = mine.connection;
    const seen = async () => {
      const count = (table: string) => attempt(sql, `select from ${table} where project_id = 'prj_other'`);
      const tables = ["images", "build_cache", "sources", "source_heads", "deployments", "containers"];
      const found = await Promise.all(tables.map(async (table) => [table, await count(table)] as const));
      return found.filter(([, rows]) => rows !== 0).map(([table]) => table);
    };
    const needed = {
      pull: ["images"],
      push: ["images"],
      build: ["images", "build_cache", "sources", "deployments", "containers"],
      source: ["sources", "source_heads"],
      deploy: ["images", "sources", "deployments", "containers"],
    };
    for (const [kind, tables] of Object.entries(needed)) {
      const id = await makeJob(ids.other, kind, { on: mine });
      expect(await seen(), kind).toEqual(tables);
      const [job] = await db.owner`select id, project_id as "projectId", kind, epoch::int from jobs where id = ${id}`;
      const attempted = { job: job as never, outcome: { status: "succeeded", result: {} } as const };
      expect([...(await settleJobs(sql, [attempted]))]).toEqual([id]);
      expect(await seen(), `after ${kind}`).toEqual([]);
      await db.owner`delete from jobs where id = ${id}`;
    }
  });

  it("locks a source and changes nothing of it", async () => {
    const id = await makeJob(ids.other, "source", { on: mine });
    const { sql } = mine.connection;
    expect(await attempt(sql, "select from sources where project_id = 'prj_other' for key share")).toBe(1);
    expect(await attempt(sql, "update sources set created_at = now() where project_id = 'prj_other'")).toBe(refused);
    await db.owner`delete from jobs where id = ${id}`;
  });

  it("has upkeep done by the database: nothing goes before its time, no layer is told that it does not name", async () => {
    const { db: worker } = mine.connection;
    await db.owner`insert into events (project_id, type, subject_id, at) values ('prj_other', 'old', 's', now() - interval '8 days')`;
    const count = async (type: string) => (await db.owner`select from events where type = ${type}`).length;
    expect([await count("t"), await count("old")]).toEqual([2, 1]);
    await deleteExpired(worker);
    expect([await count("t"), await count("old")]).toEqual([2, 0]);
    expect(await neededLayers(worker, ["diff-prj_other", "unknown"])).toEqual(new Set(["diff-prj_other"]));
  });
});
