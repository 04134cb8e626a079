import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, rmSync, truncateSync, utimesSync, writeFileSync } from "node:fs";
import type { AddressInfo } from "node:net";
import { afterAll, beforeAll, describe, expect, inject, test, vi } from "vitest";
import { newId } from "../../src/core/ids.ts";
import { open } from "../../src/core/keys.ts";
import { storeCommit } from "../../src/routes/git/commit-context.ts";
import { recoverPushes } from "../../src/routes/git/push-builds.ts";
import { Repositories } from "../../src/routes/git/repositories.ts";
import { closeServer, listen } from "../../src/routes/listener.ts";
import { ask, createApi, type TestApi, type TestProject } from "../support/api.ts";
import { GitClient } from "../support/git-client.ts";

let api: TestApi;
let project: TestProject;

beforeAll(async () => {
  api = await createApi(inject("postgresSocketDir"));
  project = await api.project("team");
});
afterAll(() => api.close());

const basic = (token: string) => ({ authorization: `Basic ${btoa(`anyone:${token}`)}` });
const refs = async (name: string, service: string, token = project.tokens.deployer) =>
  api.app.request(`/git/team/${name}.git/info/refs?service=${service}`, { headers: basic(token) });
const sourceId = async (name: string) => {
  const [row] = await api.database.owner<{ id: string }[]>`
    select id from sources where project_id = ${project.id} and name = ${name}`;
  return row?.id ?? null;
};

describe("/git/<project>/<source>.git", () => {
  test("asks for a token, which is the password", async () => {
    const none = await api.app.request("/git/team/web.git/info/refs?service=git-receive-pack");
    expect(none.status).toBe(401);
    expect(none.headers.get("www-authenticate")).toBe('Basic realm="Berth", charset="UTF-8"');
    const bearer = await api.app.request("/git/team/web.git/info/refs?service=git-receive-pack", {
      headers: { authorization: `Bearer ${project.tokens.deployer}` },
    });
    expect(bearer.status).toBe(401);
  });

  test("has a source after the first push only, one however many come at once", async () => {
    expect((await refs("web", "git-upload-pack")).status).toBe(404);
    expect(await sourceId("web")).toBeNull();
    expect((await refs("web", "git-receive-pack", project.tokens.viewer)).status).toBe(403);
    const answers = await Promise.all([1, 2, 3, 4].map(() => refs("web", "git-receive-pack")));
    for (const answer of answers) {
      expect(answer.status).toBe(200);
      expect(answer.headers.get("content-type")).toBe("application/x-git-receive-pack-advertisement");
      expect(await answer.text()).toContain("# service=git-receive-pack");
    }
    expect(await sourceId("web")).not.toBeNull();
    expect((await refs("web", "git-upload-pack", project.tokens.viewer)).status).toBe(200);
  });

  test("is no place for other sources, other names and other protocols", async () => {
    await api.app.request("/v1/sources", {
      method: "POST",
      headers: { authorization: `Bearer ${project.tokens.admin}`, "content-type": "application/json" },
      body: JSON.stringify({ name: "hub", provider: "github", url: "https://github.com/team/hub.git" }),
    });
    const hub = await refs("hub", "git-receive-pack");
    expect([hub.status, await hub.text()]).toEqual([
      409,
      "hub is built from https://github.com/team/hub.git: push there.\n",
    ]);
    const misnamed = await refs("Web", "git-receive-pack");
    expect(misnamed.status).toBe(404);
    expect(await misnamed.text()).toContain("must be 1 to 63 lower-case letters");
    expect((await refs("web", "git-upload-archive")).status).toBe(400);
    expect((await refs("web", "")).status).toBe(400);
  });

  test("takes no more when the repository is as large as one may be", async () => {
    await (await refs("full", "git-receive-pack")).text();
    const path = api.services.repositories.pathOf(project.id, (await sourceId("full")) ?? "");
    mkdirSync(`${path}/objects/pack`, { recursive: true });
    writeFileSync(`${path}/objects/pack/large`, "");
    truncateSync(`${path}/objects/pack/large`, 2 ** 30);
    const answer = await refs("full", "git-receive-pack");
    expect([answer.status, await answer.text()]).toEqual([413, expect.stringContaining("one may have")]);
    expect((await refs("full", "git-upload-pack")).status).toBe(200);
  });
});

describe("the repositories", () => {
  const at = async (name: string) => {
    await (await refs(name, "git-receive-pack")).text();
    return api.services.repositories.pathOf(project.id, (await sourceId(name)) ?? "");
  };

  test("go with their source; what killed pushes left goes after a day", async () => {
    const [kept, gone] = [await at("kept"), await at("gone")];
    const old = `${kept}/objects/tmp_objdir-incoming-x`;
    const recent = `${kept}/objects/tmp_objdir-incoming-y`;
    for (const directory of [old, recent]) mkdirSync(directory);
    utimesSync(old, 1, 1);
    await api.database.owner`delete from sources where id = ${(await sourceId("gone")) ?? ""}`;
    await api.services.repositories.tidy(async (projectId) => {
      const rows = await api.database.owner<{ id: string }[]>`select id from sources where project_id = ${projectId}`;
      return new Set(rows.map(({ id }) => id));
    });
    expect([kept, gone, old, recent].map((path) => existsSync(path))).toEqual([true, false, false, true]);
  });

  test("have few packs however many pushes come", async () => {
    const path = await at("packed");
    for (let i = 0; i < 51; i++) {
      const input = `commit refs/heads/main\ncommitter a <a@b> ${String(i)} +0000\ndata 0\nM 100644 inline f\ndata 1\n${String(i % 10)}\n`;
      execFileSync("git", ["-c", "fastimport.unpackLimit=0", "-C", path, "fast-import", "--quiet", "--force"], {
        input,
      });
    }
    const packs = () => readdirSync(`${path}/objects/pack`).filter((name) => name.endsWith(".pack")).length;
    expect(packs()).toBe(51);
    await api.services.repositories.compact(path);
    expect(packs()).toBe(1);
    execFileSync("git", ["-C", path, "rev-parse", "main"]);
  });

  test("have contexts that lead nowhere but into the commit's tree", async () => {
    const path = await at("trees");
    const tree = [
      "M 120000 inline out",
      "data 4",
      "/etc",
      `M 160000 ${"1".repeat(40)} module`,
      "M 644 inline dir/file",
      "data 0",
    ];
    const input = ["commit refs/heads/main", "committer a <a@b> 1 +0000", "data 0", ...tree, "", ""].join("\n");
    execFileSync("git", ["-C", path, "fast-import", "--quiet"], { input });
    const commit = execFileSync("git", ["-C", path, "rev-parse", "main"], { encoding: "utf8" }).trim();
    const store = (subdirectory: string) => storeCommit(path, commit, subdirectory, api.services.blobs, 2 ** 20);
    for (const outside of ["out", "module", "dir/file", "..", "../..", "dir/../../trees.git", "/etc"]) {
      await expect(store(outside), outside).rejects.toMatchObject({ code: "ref_not_found" });
    }
    expect((await store("dir")).sizeBytes).toBeGreaterThan(0);
  });

  test("are made once their place can be, after it could not", async () => {
    const client = await GitClient.create();
    const place = `${client.directory}/place`;
    writeFileSync(place, "");
    const repositories = new Repositories(place, { repositoryBytes: 1, packBytes: 1 });
    await expect(repositories.ensure("prj_a", "src_a")).rejects.toThrow("ENOTDIR");
    rmSync(place);
    expect(existsSync(await repositories.ensure("prj_a", "src_a"))).toBe(true);
    client.remove();
  });
});

describe("builds of a push that did not begin", () => {
  const builds = async (name: string) =>
    (await api.database.owner`select 1 from builds where source_id = ${(await sourceId(name)) ?? ""}`).length;
  /** A repository with a commit that nobody was told of, as a process of the API that was killed leaves it. */
  const unfinished = async (name: string) => {
    await (await refs(name, "git-receive-pack")).text();
    const path = api.services.repositories.pathOf(project.id, (await sourceId(name)) ?? "");
    const input = "commit refs/heads/main\ncommitter a <a@b> 1 +0000\ndata 0\nM 100644 inline Dockerfile\ndata 1\n\n\n";
    execFileSync("git", ["-C", path, "fast-import", "--quiet"], { input });
    mkdirSync(`${path}/berth-pushes`);
    writeFileSync(`${path}/berth-pushes/note`, "");
    return () => readdirSync(`${path}/berth-pushes`);
  };

  test("begin later, whatever is wrong with other repositories; what can't be built is done with", async () => {
    const [wrong, good] = [await unfinished("wrong"), await unfinished("good")];
    await api.database.owner`update sources set subdirectory = 'none' where id = ${(await sourceId("wrong")) ?? ""}`;
    await recoverPushes(api.services);
    expect([await builds("wrong"), await builds("good")]).toEqual([0, 1]);
    expect([wrong(), good()]).toEqual([[], []]);
  });

  test("have the source's users at registries and secrets, sealed for the build alone", async () => {
    const path = await unfinished("based");
    const id = (await sourceId("based")) ?? "";
    const registryAuth = { "registry.example": { username: "ada", password: "hunter2" } };
    const secrets = { npm: "hunter3" };
    const patched = await ask(api.app, project.tokens.deployer, "PATCH", `/v1/sources/${id}`, {
      registryAuth,
      secrets,
    });
    expect(patched).toMatchObject({ status: 200, body: { hasRegistryAuth: true, hasSecrets: true } });
    await recoverPushes(api.services);
    expect(path()).toEqual([]);
    const [job] = await api.database.owner<{ id: string; payload: Record<string, string> }[]>`
      select j.id, j.payload from jobs j join builds b on b.job_id = j.id where b.source_id = ${id}`;
    const opened = Object.entries(job?.payload ?? {}).map(([name, sealed]) => [
      name,
      JSON.parse(open(api.services.secretKey, `build:${job?.id ?? ""}`, sealed)) as unknown,
    ]);
    expect(Object.fromEntries(opened)).toEqual({ registryAuth, secrets });
  });

  test("begin when other jobs of the project are in the way no more", async () => {
    const server = await listen(api.app, { host: "127.0.0.1", port: 0 });
    const client = await GitClient.create();
    const { owner } = api.database;
    const busy = Array.from({ length: 200 }, () => newId("job"));
    await owner`insert into jobs (id, project_id, kind, payload) select id, ${project.id}, 'pull', '{}' from unnest(${busy}::text[]) id`;
    await client.commit({ Dockerfile: "FROM scratch\n" });
    const base = `127.0.0.1:${String((server.address() as AddressInfo).port)}`;
    const pushed = await client.git("push", `http://git:${project.tokens.deployer}@${base}/git/team/later.git`, "main");
    expect(pushed.exitCode).toBe(0);
    expect(pushed.stderr).toContain("jobs that have not ended");
    expect(await builds("later")).toBe(0);
    await owner`delete from jobs where id in ${owner(busy)}`;
    await vi.waitFor(
      async () => {
        await recoverPushes(api.services);
        expect(await builds("later")).toBe(1);
      },
      { timeout: 10_000 },
    );
    client.remove();
    await closeServer(server, 0);
  });
});
